//! One folder for each operation, with tests against a plain version beside it.

pub(crate) mod attend;
pub(crate) mod compress;
pub(crate) mod experts;
pub(crate) mod hyper;
pub(crate) mod index;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod route;
pub(crate) mod rows;
