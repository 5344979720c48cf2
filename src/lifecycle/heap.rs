//! Giving freed memory back to the system.

/// Returns free heap pages to the system.
///
/// A burst of connections leaves free blocks in many of the C library's arenas, which it keeps;
/// a small box wants them back. Costs about a millisecond per ten megabytes held, so it is called
/// when a burst is over and not per connection. Does nothing where the C library is not glibc.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
    // SAFETY: `malloc_trim` takes a number, may be called from any thread at any time (glibc
    // documents it as MT-Safe) and touches only memory that is free.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
