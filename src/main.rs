//! The `adit` binary: hands its arguments to [`adit::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    adit::cli::main(std::env::args_os().skip(1))
}
