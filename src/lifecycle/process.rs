//! The process's end.

/// Ends the process at once with this exit code, whatever its threads do: for signals that must
/// work while a thread waits for something that nobody can interrupt.
#[expect(clippy::disallowed_methods, reason = "this is the room that may")]
pub fn end_process(code: u8) -> ! {
    std::process::exit(code.into())
}
