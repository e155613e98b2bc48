//! NEON: four registers of four lanes.
