//! Measuring: a model in process at growing depths, servers side by side under made-up work, and the report about it.
//!
//! A [`Workload`] says what is asked and when; [`Target`] is a server; `run` puts one to the other and notes when each piece of
//! each answer came. [`Report`] is plain data, which `report` writes as a page, JSON and CSV.

mod ask;
mod energy;
mod interrupt;
mod machine;
mod memory;
mod numbers;
mod ports;
mod report;
mod results;
mod run;
mod stream;
mod target;
pub mod workload;

pub use ask::{Asked, Limits, ask};
pub use energy::Energy;
pub use interrupt::{INTERRUPTED, interrupted, stop_on_ctrl_c, until_interrupted};
pub use machine::Machine;
pub use memory::{Point, Watch};
pub use numbers::{Quantiles, Spread, median, quantile};
pub use report::{Folder, axes, end, groups, shares, write_whole};
pub use results::{
    About, Cell, Frontier, Frontiers, Grid, Needle, Planned, Report, Request, Round, Servers, Summary, Tested,
};
pub use run::{Client, Rounds, measure};
pub use target::{Api, Target, parse as parse_target};
pub use workload::{Item, Message, Workload};
