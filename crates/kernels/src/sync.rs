//! What the pool synchronises with: the standard library's, or under `--cfg loom` loom's, to check the pool's tests in
//! every order of events.

#[cfg(loom)]
pub(crate) use checked::*;
#[cfg(not(loom))]
pub(crate) use plain::*;

#[cfg(not(loom))]
mod plain {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread;
    pub(crate) use std::thread_local;

    /// `std::cell::UnsafeCell`, called as loom's is.
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(loom)]
mod checked {
    use std::sync::atomic::Ordering;

    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use loom::thread;

    /// Loom takes SeqCst for AcqRel, and would raise false alarms. Here a SeqCst load returns the newest value, as
    /// long as all that was added was added with SeqCst: to the pool, that is what their one order means.
    pub(crate) struct AtomicU64 {
        value: loom::sync::atomic::AtomicU64,
        weak: std::sync::atomic::AtomicBool,
    }

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            AtomicU64 { value: loom::sync::atomic::AtomicU64::new(value), weak: false.into() }
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            if order == Ordering::SeqCst && !self.weak.load(Ordering::Relaxed) {
                // A read-modify-write never reads an old value.
                self.value.fetch_add(0, Ordering::Acquire)
            } else {
                self.value.load(order)
            }
        }

        pub(crate) fn fetch_add(&self, more: u64, order: Ordering) -> u64 {
            if order != Ordering::SeqCst {
                self.weak.store(true, Ordering::Relaxed);
            }
            self.value.fetch_add(more, order)
        }
    }

    /// What else the pool does to it needs nothing of the kind.
    impl std::ops::Deref for AtomicU64 {
        type Target = loom::sync::atomic::AtomicU64;

        fn deref(&self) -> &Self::Target {
            &self.value
        }
    }

    /// Loom's does not know `const`.
    macro_rules! thread_local_const {
        ($(#[$doc:meta])* static $name:ident: $type:ty = const $init:block;) => {
            ::loom::thread_local! { $(#[$doc])* static $name: $type = $init; }
        };
    }
    pub(crate) use thread_local_const as thread_local;
}
