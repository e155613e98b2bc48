// Elements, made without markup: what comes from outside can only become text.

/** The element with an id. */
export const $ = (id) => document.getElementById(id);

/**
 * An element. Of `about`, `class` and `text` are what they say, names that begin with "on" are listeners, true and false set and
 * leave out an attribute, and all else is attributes.
 */
export function el(name, about = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(about)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return made;
}

/** Sets an element's text, if it is another: so that nothing is announced or laid out again for nothing. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
