//! The `fathom` program.

use std::process::ExitCode;

/// How many threads fastokens makes tokens with: it takes it from nowhere else.
const THREADS: &str = "FASTOKENS_BPE_THREADS";

fn main() -> ExitCode {
    // fastokens would share a long text among its threads, by way of a table of 32 MiB that comes to be or not as they happen to run.
    // One thread makes tokens of five megabytes in a quarter of a second; reading them takes minutes.
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: there is no other thread yet that could read the environment.
        unsafe { std::env::set_var(THREADS, "1") };
    }
    fathom::cli::main()
}
