//! Entry point; everything else is in the library.

use std::process::ExitCode;

/// Rows are many small allocations, made by one task and freed by another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tailwater::app::main()
}
