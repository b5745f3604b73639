//! What lets others check the ledger without trusting its database or us: checkpoints outside it, witnesses, exports with proofs.

pub mod bundle;
pub mod checkpoint;
pub mod cosignature;
pub mod directory;
pub mod publish;
pub mod witness;
