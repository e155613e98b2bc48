//! One thing that was looked at.

use serde::Serialize;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but could be faster or safer.
    Advice,
    /// It does not work, or not as it should.
    Wrong,
}

/// One thing that was looked at, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What that costs, where it costs something.
    pub cost: Option<String>,
    /// The command that mends it, or what else does.
    pub mend: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn good(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Good, found: found.into(), cost: None, mend: None }
    }

    /// It could be better.
    pub fn advice(
        name: &'static str,
        found: impl Into<String>,
        cost: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        let (cost, mend) = (Some(cost.into()), Some(mend.into()));
        Finding { name, verdict: Verdict::Advice, found: found.into(), cost, mend }
    }

    /// It does not work.
    pub fn wrong(
        name: &'static str,
        found: impl Into<String>,
        cost: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        Finding { verdict: Verdict::Wrong, ..Finding::advice(name, found, cost, mend) }
    }
}
