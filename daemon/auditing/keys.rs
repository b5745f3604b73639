//! Makes the key that checkpoints are signed with.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::app::{EX_CONFIG, EX_UNAVAILABLE};
use crate::audit::checkpoint;
use crate::operate::Refusal;

/// `tailwater ledger key`.
pub fn generate(name: &str, out: &Path) -> Result<String, Refusal> {
    let (private, public) =
        checkpoint::generate(name).map_err(|error| Refusal(EX_CONFIG, error.to_string()))?;
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(out)?;
        file.write_all(private.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(|error| Refusal(EX_UNAVAILABLE, format!("{}: {error}", out.display())))?;
    Ok(format!("{public}\n"))
}
