//! Row images: they give before-values without REPLICA IDENTITY FULL, fill unchanged TOAST, end writes that change
//! nothing mapped, and answer look-ups as of the same transaction. Knows nothing of HTTP.

mod document;
mod object;
pub mod overlay;
pub mod project;

pub use document::Part;
pub use overlay::{
    Changed, Drift, Emission, Image, Images, IndexId, KeysByValue, Missing, Overlay, OverlayChanges, RowId,
};
pub use project::{Emitted, Projection, Roots, Touch};
