//! Stop strings in a text that comes in parts.

/// Cuts a text before the first stop string in it. What may be the beginning of one is held back.
#[derive(Debug, Clone)]
pub struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    /// For these strings; empty ones are never found.
    pub fn new(stops: Vec<String>) -> Stops {
        Stops { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Takes more of the text and gives what is sure to be before any stop string; true if one was found, which ends the text.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        // Where a stop string may begin that is not there to its end.
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let at = (from..self.held.len()).filter(|&at| self.held.is_char_boundary(at)).find(begins);
        let held = self.held.split_off(at.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, held), false)
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, stops: &[&str], size: usize) -> (String, bool) {
        let mut reader = Stops::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut got = String::new();
        let chars: Vec<char> = text.chars().collect();
        for part in chars.chunks(size) {
            let (text, found) = reader.push(&part.iter().collect::<String>());
            got += &text;
            if found {
                return (got, true);
            }
        }
        (got + &reader.finish(), false)
    }

    #[test]
    fn cuts_wherever_the_parts_end() {
        for size in 1..6 {
            assert_eq!(cut("one two three", &["two"], size), ("one ".into(), true));
            assert_eq!(cut("a\n\nb", &["\n\n", "b"], size), ("a".into(), true));
            assert_eq!(cut("aab aaab", &["aaab"], size), ("aab ".into(), true));
            assert_eq!(cut("né漢 né漢字", &["漢字"], size), ("né漢 né".into(), true));
            assert_eq!(cut("nothing", &["ingot", ""], size), ("nothing".into(), false));
            assert_eq!(cut("all", &[], size), ("all".into(), false));
        }
    }
}
