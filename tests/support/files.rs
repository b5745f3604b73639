//! What a test changes in a world's settings and mappings.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::World;

impl World {
    /// A copy of the shipped mappings, which the settings name from now on.
    pub fn own_mappings(&self) -> PathBuf {
        let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mappings");
        let own = self.directory.path().join("mappings");
        let copied = Command::new("cp").arg("-r").arg(&shipped).arg(&own).status().unwrap();
        assert!(copied.success());
        let names = |path: &Path| format!("mappings = \"{}\"", path.display());
        self.edit_settings(&names(&shipped), &names(&own));
        own
    }

    /// One more connector file; the world must have mappings of its own.
    pub fn add_connector(&self, name: &str, text: &str) {
        let path = self.directory.path().join("mappings/connectors").join(format!("{name}.yaml"));
        std::fs::write(path, text).unwrap();
    }

    /// One more section in the settings file.
    pub fn add_settings(&self, section: &str) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        std::fs::write(&self.config, format!("{text}\n{section}\n")).unwrap();
    }

    /// One more source.
    pub fn add_source(&self, name: &str, settings: &str) {
        self.add_settings(&format!("[sources.{name}]\n{settings}"));
    }

    /// Replaces `from`, which must be there, in the settings file.
    pub fn edit_settings(&self, from: &str, to: &str) {
        let settings = std::fs::read_to_string(&self.config).unwrap();
        assert!(settings.contains(from), "`{from}` is not in the settings");
        std::fs::write(&self.config, settings.replace(from, to)).unwrap();
    }

    /// Names another port for the ERP in the settings file.
    pub fn read_from(&self, port: u16) {
        self.edit_settings(&format!(":{}/erp", self.erp.port), &format!(":{port}/erp"));
    }

    /// One more target at `url`, with a connector of the same name; `more` are further lines of its settings.
    pub fn add_target(&self, name: &str, url: &str, more: &str) {
        let key = self.directory.path().join("stripe.key").display().to_string();
        self.add_settings(&format!(
            "[targets.{name}]\nconnector = \"{name}\"\nbase_url = \"{url}\"\napi_key = {{ file = \"{key}\" }}\n{more}"
        ));
    }
}
