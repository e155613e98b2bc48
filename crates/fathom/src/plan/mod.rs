//! What a model will take and how fast it will be, before it is loaded: memory by the ledger's shares, time by the
//! operations of `fathom_model::pieces` on a machine's measured rates, streamed experts by the simulator.

mod chart;
mod efficiency;
mod faster;
mod forecast;
mod free;
mod machine;
mod measure;
mod memory;
mod report;
mod speed;
mod stream;
mod subject;

pub use chart::chart;
pub use efficiency::{Class, Efficiency, efficiency};
pub use faster::Change;
pub use forecast::{Expected, Forecast, per_second};
pub use free::free_memory;
pub(crate) use free::{group_limit, meminfo, own_groups};
pub use machine::{Drive, Machine};
pub use measure::{PROBE, forget, measure, measure_drive, remember, remember_drive, remembered, remembered_drive};
pub use memory::{BESIDE, Plan, TooSmall, Used, Wanted, plan};
pub use report::{Memory, Point, Questions, Rate, Report, Snapshot, Wear, Workload, report};
pub use speed::{Limit, Seconds, Speed};
pub use stream::{Drawn, Streaming};
pub use subject::{Subject, read_config};
