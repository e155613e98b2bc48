//! Standard output, whose failures are errors, and standard error, whose failures are nobody's business.

use std::io::{self, Stdout, Write};

/// Standard output. What goes wrong says where; that the reader has gone stays a broken pipe.
#[derive(Debug)]
pub struct Out(Stdout);

/// Standard output.
pub fn out() -> Out {
    Out(io::stdout())
}

fn named(e: io::Error) -> io::Error {
    match e.kind() {
        // The first is how writers learn to try again, the second how the program ends quietly.
        io::ErrorKind::Interrupted | io::ErrorKind::BrokenPipe => e,
        kind => io::Error::new(kind, format!("standard output: {e}")),
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

/// As `eprintln!`, but nobody reading it is no reason to end.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}
pub(crate) use say;
