//! Numeric profiles: the recipes that fix the bits.

use std::fmt;
use std::str::FromStr;

/// Raised whenever a change moves a bit of any profile.
pub(crate) const REVISION: u32 = 3;

/// A numeric recipe. Weights stay as released in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Profile {
    /// Inputs of FP4 matrices are rounded to int8, one scale for 32 columns, and multiplied exactly in integers. Inputs of
    /// FP8 matrices, queries and attention weights are rounded to bfloat16. Everything else is f32, all sums too.
    #[default]
    Native,
    /// f32 activations and accumulation everywhere.
    Exact,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Native => "native",
            Profile::Exact => "exact",
        })
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "native" => Ok(Profile::Native),
            "exact" => Ok(Profile::Exact),
            _ => Err(format!("'{name}' is no profile; there are: native, exact")),
        }
    }
}
