// Numbers for people.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A whole number: 1,048,576. */
export const count = (n) => whole.format(n);

/** A number of things: 1 token, 2 tokens. */
export const of = (n, thing) => `${count(n)} ${thing}${n === 1 ? "" : "s"}`;

/** Bytes: 6.8 MiB. */
export function bytes(n) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? whole.format(n) : n.toFixed(1)} ${units[unit]}`;
}

/** A time: 40 ms, 2.4 s, 12 s, 3 min 5 s, 2 h 10 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds < 0.95) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Tokens in a second. */
export const speed = (perSecond) => `${rough(perSecond)}/s`;

/** A number with a digit behind the point where that tells something. */
export const rough = (n) => (n > 0 && n < 10 ? n.toFixed(1) : count(n));

/** How far a prompt is, in words: without a speed nothing is said of the time left. */
export function progress({ done, total, speed: perSecond }) {
  const parts = [`${count(done)} of ${of(total, "token")}`];
  if (perSecond > 0) {
    parts.push(speed(perSecond));
    if (done < total) parts.push(`${duration((total - done) / perSecond)} left`);
  }
  // A line breaks between them.
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
}

/** How long ago a time in seconds since 1970 was. */
export function ago(time) {
  const seconds = Date.now() / 1000 - time;
  return seconds < 60 ? "just now" : `${duration(seconds).replace(/ \d+ s$/, "")} ago`;
}
