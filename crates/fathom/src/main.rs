//! The `fathom` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // fastokens would share a long text among its threads, by way of a table of 32 MiB that comes to be or not as they happen to run.
    // One thread takes a second for a text that takes minutes to be read.
    // SAFETY: there is no other thread yet that could read the environment.
    unsafe { std::env::set_var("FASTOKENS_BPE_THREADS", "1") };
    fathom::cli::main()
}
