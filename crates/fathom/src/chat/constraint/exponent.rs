//! Numbers stay readable: JSON's grammar has exponents of any length, and readers have not.
//!
//! Outside of strings, an exponent gets two digits at most.

use llguidance::toktrie::SimpleVob;

use super::super::Tokenizer;

/// Digits of an exponent.
const DIGITS: usize = 2;
/// What comes before the JSON of an argument.
const VALUE: &[u8] = b"=\"false\">";

/// Where in JSON an answer is.
#[derive(Debug, Clone)]
pub(super) struct Exponents {
    place: Place,
    /// The last byte was a digit of a number.
    digit: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Place {
    /// No JSON is looked for.
    Nowhere,
    /// Between the values of calls: so many bytes of [`VALUE`] have been seen.
    Markup(usize),
    /// In JSON, outside of strings.
    Json,
    /// In a string, after a backslash or not.
    Text { escaped: bool },
    /// In an exponent of so many digits, after a sign or a digit or not.
    Exponent { digits: usize, begun: bool },
}

impl Exponents {
    pub(super) fn nowhere() -> Exponents {
        Exponents { place: Place::Nowhere, digit: false }
    }

    pub(super) fn in_json() -> Exponents {
        Exponents { place: Place::Json, digit: false }
    }

    pub(super) fn in_calls() -> Exponents {
        Exponents { place: Place::Markup(0), digit: false }
    }

    /// Markup begins.
    pub(super) fn leave(&mut self) {
        if self.place != Place::Nowhere {
            *self = Exponents::in_calls();
        }
    }

    pub(super) fn read(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.step(byte));
    }

    fn step(&mut self, byte: u8) {
        let digit = std::mem::replace(&mut self.digit, byte.is_ascii_digit());
        self.place = match &self.place {
            Place::Nowhere => Place::Nowhere,
            Place::Markup(seen) if byte == VALUE[*seen] && seen + 1 == VALUE.len() => Place::Json,
            Place::Markup(seen) if byte == VALUE[*seen] => Place::Markup(seen + 1),
            Place::Markup(_) => Place::Markup(usize::from(byte == VALUE[0])),
            Place::Text { escaped: true } => Place::Text { escaped: false },
            Place::Text { escaped: false } if byte == b'"' => Place::Json,
            Place::Text { escaped: false } => Place::Text { escaped: byte == b'\\' },
            Place::Exponent { digits, .. } if byte.is_ascii_digit() => {
                Place::Exponent { digits: digits + 1, begun: true }
            }
            Place::Exponent { digits, begun: false } if matches!(byte, b'+' | b'-') => {
                Place::Exponent { digits: *digits, begun: true }
            }
            Place::Json | Place::Exponent { .. } => match byte {
                b'"' => Place::Text { escaped: false },
                b'e' | b'E' if digit => Place::Exponent { digits: 0, begun: false },
                _ => Place::Json,
            },
        };
    }

    /// Takes tokens out of a mask that would make an exponent too long; `long` are those that have such a one in themselves.
    pub(super) fn limit(&self, mask: &mut SimpleVob, tokenizer: &Tokenizer, long: &[u32]) {
        let in_number = matches!(self.place, Place::Exponent { .. }) || self.place == Place::Json && self.digit;
        if in_number {
            let all = mask.to_list().into_iter();
            all.filter(|&id| self.lengthen(tokenizer.token_bytes(id))).for_each(|id| mask.disallow_token(id));
        } else if self.place == Place::Json {
            long.iter().for_each(|&id| mask.disallow_token(id));
        }
    }

    /// Whether an exponent is too long with these bytes.
    pub(super) fn lengthen(&self, bytes: &[u8]) -> bool {
        let mut after = self.clone();
        bytes.iter().any(|&byte| {
            after.step(byte);
            matches!(after.place, Place::Exponent { digits, .. } if digits > DIGITS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits_after(text: &str, mut exponents: Exponents) -> Option<usize> {
        exponents.read(text.as_bytes());
        match exponents.place {
            Place::Exponent { digits, .. } => Some(digits),
            _ => None,
        }
    }

    #[test]
    fn exponents_are_found_where_numbers_are() {
        for (text, digits) in [
            ("{\"a\": 1e", Some(0)),
            ("[1.5E-", Some(0)),
            ("[1.5e+12", Some(2)),
            ("[1e12, 3", None),
            ("[\"1e12", None),
            ("[\"\\\"1e12", None),
            ("[\"a\\\\\", 1e1", Some(1)),
            ("[true", None),
            ("[false, 7e", Some(0)),
        ] {
            assert_eq!(digits_after(text, Exponents::in_json()), digits, "{text}");
        }
        assert_eq!(digits_after("parameter name=\"a\" string=\"false\">1e4", Exponents::in_calls()), Some(1));
        assert_eq!(digits_after("parameter name=\"a\" string=\"true\">1e4", Exponents::in_calls()), None);
        assert_eq!(digits_after("1e4", Exponents::nowhere()), None);
    }
}
