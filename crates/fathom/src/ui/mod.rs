//! What a person sees on a terminal: progress, memory, numbers.

mod drives;
mod memory;
mod out;
mod progress;
mod transfer;

pub use drives::process_io;
pub use memory::{anonymous_rss, forget_peak, peak_rss, rss};
pub use out::out;
pub(crate) use out::say;
pub use progress::Progress;
pub use transfer::Transfer;

/// A whole number with commas: `1,048,576`.
pub fn commas(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A time for people: `0.42 s`, `3:05 min`, `2:10:00 h`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 if seconds < 10.0 => format!("{seconds:.2} s"),
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{}:{:02} min", whole / 60, whole % 60),
        _ => format!("{}:{:02}:{:02} h", whole / 3600, whole / 60 % 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!((commas(0), commas(999), commas(1_048_576)), ("0".into(), "999".into(), "1,048,576".into()));
        assert_eq!((duration(0.42), duration(59.0)), ("0.42 s".into(), "59.0 s".into()));
        assert_eq!((duration(185.2), duration(7800.0)), ("3:05 min".into(), "2:10:00 h".into()));
    }
}
