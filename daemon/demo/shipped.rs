//! The mapping files that come with tailwater, inside the binary: the demo needs no source tree.

use std::io;
use std::path::Path;

/// Path below `mappings/`, and content.
pub const FILES: [(&str, &str); 6] = [
    ("canonical/contact.v1.json", include_str!("../../mappings/canonical/contact.v1.json")),
    ("canonical/customer.v1.json", include_str!("../../mappings/canonical/customer.v1.json")),
    ("connectors/stripe.yaml", include_str!("../../mappings/connectors/stripe.yaml")),
    ("connectors/zendesk.yaml", include_str!("../../mappings/connectors/zendesk.yaml")),
    ("routes/default.yaml", include_str!("../../mappings/routes/default.yaml")),
    ("sources/odoo/partners.yaml", include_str!("../../mappings/sources/odoo/partners.yaml")),
];

/// Writes them below `directory`.
pub fn write(directory: &Path) -> io::Result<()> {
    for (name, content) in FILES {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, content)?;
    }
    Ok(())
}
