//! Which of the numbers that were wanted an answer has.

/// How many of the expected numbers stand in an answer, as numbers of their own: 150 is not in 1500. Commas between digits are
/// left out, as in 1,500.
pub fn found(answer: &str, expected: &[String]) -> usize {
    let mut text = String::with_capacity(answer.len());
    let mut chars = answer.chars().peekable();
    while let Some(c) = chars.next() {
        let between = text.ends_with(|c: char| c.is_ascii_digit()) && chars.peek().is_some_and(char::is_ascii_digit);
        if !(c == ',' && between) {
            text.push(c);
        }
    }
    let numbers: Vec<&str> = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty()).collect();
    expected.iter().filter(|wanted| numbers.contains(&wanted.as_str())).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole() {
        let count = |answer: &str, expected: &[&str]| {
            found(answer, &expected.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(count("The code of Anna is 04687.", &["04687"]), 1);
        assert_eq!(count("It is 104687 or 4687.", &["04687"]), 0);
        assert_eq!(count("1,204 in all", &["1204"]), 1);
        assert_eq!(count("12, 34 and **56**", &["12", "34", "56", "78"]), 3);
        assert_eq!(count("", &["1"]), 0);
    }
}
