//! What the system tells the server: to stop, and to read its files again.

use std::future::poll_fn;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::ui::say;

/// Exit code of a server that was told to stop and did not come to its end in time.
const LATE: i32 = 3;
/// Exit code of a server that was told to stop twice.
const TWICE: i32 = 130;

/// Hears signals on a thread of its own, until the process ends: Ctrl-C or SIGTERM resolve what is returned, and end the process
/// when they come again, or `patience` after the first; SIGHUP calls `reload`. It hears them from its return on.
///
/// # Errors
/// The system has no thread to give.
pub(super) fn hear(
    patience: Duration,
    reload: impl Fn() + Send + 'static,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let mut told = std::pin::pin!(async {
                tokio::select! {
                    () = stopping() => {}
                    () = reloading(reload) => {}
                }
            });
            // The first look asks the system for signals: who is told that the server listens may stop it at once.
            let at_once = poll_fn(|context| Poll::Ready(told.as_mut().poll(context).is_ready())).await;
            let _ = ready.send(());
            if !at_once {
                told.await;
            }
            say!("stopping: requests that run are finished first; Ctrl-C again ends at once");
            let _ = stop.send(());
            tokio::select! {
                () = stopping() => std::process::exit(TWICE),
                () = tokio::time::sleep(patience) => {
                    say!("stopping took longer than {} s; what was not written by now is lost", patience.as_secs());
                    std::process::exit(LATE);
                }
            }
        });
    })?;
    // That the thread ended by then is no reason to wait.
    let _ = is_ready.recv();
    Ok(async {
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// Waits for Ctrl-C or SIGTERM; forever if the system cannot tell.
async fn stopping() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

/// Calls `reload` at each SIGHUP; never ends.
async fn reloading(reload: impl Fn()) {
    #[cfg(unix)]
    if let Ok(mut signal) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) {
        while signal.recv().await.is_some() {
            reload();
        }
    }
    #[cfg(not(unix))]
    let _ = reload;
    std::future::pending::<()>().await;
}
