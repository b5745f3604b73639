//! Secrets: read from a file or a systemd credential when they are needed, never from the settings themselves.

use std::fmt;
use std::path::PathBuf;

use super::files;

/// Where a secret stands. Printing it shows the place, never the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A file readable by the daemon alone.
    File(PathBuf),
    /// A credential of the systemd unit (`LoadCredential=`), found in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// A password file as libpq reads it: `host:port:database:user:password`, `*` for anything.
    PassFile {
        /// The file.
        path: PathBuf,
        /// Host, port, database and user that are looked for.
        parts: [String; 4],
    },
}

/// A secret's text; not printable.
pub struct SecretText(String);

impl SecretText {
    /// The text, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A secret could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("secret {place}: {reason}")]
pub struct SecretError {
    place: String,
    reason: String,
}

impl Secret {
    /// Reads the secret; white space around it is not part of it.
    pub fn read(&self) -> Result<SecretText, SecretError> {
        let path = self.path()?;
        let failed = |reason: String| SecretError { place: path.display().to_string(), reason };
        let text = files::read_secret(&path).map_err(failed)?;
        let text = match self {
            Self::PassFile { parts, .. } => {
                let found = text.lines().find_map(|line| password_in(line, parts));
                found.ok_or_else(|| failed(format!("no line for {}", parts.join(":"))))?
            }
            Self::File(_) | Self::Credential(_) => text.trim().to_owned(),
        };
        if text.is_empty() {
            return Err(failed("the file is empty".into()));
        }
        if text.chars().any(char::is_control) {
            return Err(failed(
                "the file has more than one line, or control characters; write the secret alone into it"
                    .into(),
            ));
        }
        Ok(SecretText(text))
    }

    /// What it says cannot be sent as a header.
    #[must_use]
    pub fn unusable(&self) -> SecretError {
        let place = self.path().map_or_else(|error| error.place, |path| path.display().to_string());
        SecretError { place, reason: "it has characters that no header can carry".into() }
    }

    fn path(&self) -> Result<PathBuf, SecretError> {
        match self {
            Self::File(path) | Self::PassFile { path, .. } => Ok(path.clone()),
            Self::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
                Some(directory) => Ok(PathBuf::from(directory).join(name)),
                None => Err(SecretError {
                    place: format!("credential \"{name}\""),
                    reason: "not started by systemd with LoadCredential=".into(),
                }),
            },
        }
    }
}

/// The password of a line, if it is for these parts (<https://www.postgresql.org/docs/current/libpq-pgpass.html>).
fn password_in(line: &str, parts: &[String; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            // Colons in the password need no backslash.
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields.last_mut()?.push(chars.next()?),
            other => fields.last_mut()?.push(other),
        }
    }
    let password = fields.pop()?;
    let fits =
        fields.len() == 4 && fields.iter().zip(parts).all(|(field, part)| field == "*" || field == part);
    fits.then_some(password)
}
