//! The allocator's habits.

/// Has the allocator take large pieces straight from the system and give them back when they are freed; for the start of a program.
///
/// glibc raises both limits to the size of whatever large piece is freed first, and then keeps tens of megabytes of freed memory
/// that no plan knows of. Elsewhere this does nothing.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: i32 = 256 << 10;
        // SAFETY: it sets a number of the allocator's, under the allocator's lock. If it is refused, all stays as it was.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}
