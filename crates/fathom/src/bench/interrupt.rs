//! Ctrl-C: what was measured is kept, and the run ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static STOP: AtomicBool = AtomicBool::new(false);

/// What a report says that was stopped.
pub const INTERRUPTED: &str = "it was interrupted";

/// From here on Ctrl-C is heard; a second one ends the program at once.
pub fn stop_on_ctrl_c() {
    // Where it cannot be heard, it ends the program as ever.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
}

/// Whether somebody wants it to end.
pub fn interrupted() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Returns when somebody wants it to end.
pub async fn until_interrupted() {
    while !interrupted() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
