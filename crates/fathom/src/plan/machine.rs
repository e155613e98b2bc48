//! A machine as a plan sees it: measured, described in a file, or one of a small library.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 16;
/// The longest name, in characters.
const LONGEST_NAME: usize = 120;

/// What decides how fast a model runs, and whether it fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// What people call it.
    pub name: String,
    /// Where the figures are from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// The instruction set that kernels use: avx512-bf16, avx512, avx2, neon or plain.
    pub isa: String,
    /// Threads that compute: one for each core.
    pub threads: usize,
    /// GiB of memory that fathom may have.
    pub memory_gib: f64,
    /// GB/s that all cores together read from memory.
    pub read_gbps: f64,
    /// Gflop/s of all cores in f32; a multiply-add counts two.
    pub f32_gflops: f64,
    /// Top/s of all cores on int8 with sums in 32 bits; a multiply-add counts two.
    pub int8_tops: f64,
    /// Where the model's files and the sessions are, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "fields")]
    pub drive: Option<Drive>,
}

/// A drive by its fields' names, and not by their order, which a list would be taken for.
fn fields<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Drive>, D::Error> {
    struct Fields;

    impl<'de> Visitor<'de> for Fields {
        type Value = Option<Drive>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a drive's fields")
        }

        fn visit_unit<E>(self) -> Result<Option<Drive>, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Option<Drive>, D::Error> {
            from.deserialize_map(self)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<Drive>, A::Error> {
            Drive::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }

    from.deserialize_option(Fields)
}

/// Drives that the model's files and the sessions are on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Drive {
    /// How many share the model's shards.
    #[serde(default = "one")]
    pub count: usize,
    /// GB/s that each gives to several large reads at once.
    pub read_gbps: f64,
    /// GB/s that it takes; where left out a third of what it gives is assumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_gbps: Option<f64>,
    /// Microseconds from asking to the first byte.
    #[serde(default = "latency")]
    pub latency_us: f64,
    /// Terabytes that its maker warrants it for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endurance_tb: Option<f64>,
}

fn one() -> usize {
    1
}

fn latency() -> f64 {
    100.0
}

impl Drive {
    /// Bytes a second that all together give.
    pub fn read(&self) -> f64 {
        self.count as f64 * self.read_gbps * 1e9
    }

    /// What no drive has.
    pub(super) fn check(&self) -> Result<(), String> {
        whole("drive.count", self.count, 64)?;
        number("drive.read-gbps", self.read_gbps, 1e-3, 1000.0)?;
        self.write_gbps.map_or(Ok(()), |it| number("drive.write-gbps", it, 1e-3, 1000.0))?;
        number("drive.latency-us", self.latency_us, 0.0, 1e6)?;
        self.endurance_tb.map_or(Ok(()), |it| number("drive.endurance-tb", it, 0.1, 1e7))
    }

    /// Bytes a second that one takes: sessions are on one.
    pub fn write(&self) -> f64 {
        self.write_gbps.unwrap_or(self.read_gbps / 3.0) * 1e9
    }
}

/// The library: names, and what their files say.
const KNOWN: [(&str, &str); 5] = [
    ("ryzen-5950x-64g", include_str!("machines/ryzen-5950x-64g.toml")),
    ("ryzen-9950x-96g", include_str!("machines/ryzen-9950x-96g.toml")),
    ("threadripper-7980x-256g", include_str!("machines/threadripper-7980x-256g.toml")),
    ("epyc-9654-1152g", include_str!("machines/epyc-9654-1152g.toml")),
    ("epyc-9v45-512g", include_str!("machines/epyc-9v45-512g.toml")),
];

impl Machine {
    /// The names of the library's machines.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|(name, _)| *name)
    }

    /// One of the library by its name, or that of a file in TOML or JSON.
    ///
    /// # Errors
    /// In one line: the file cannot be read, or what is wrong with it.
    pub fn find(name: &str) -> Result<Machine, String> {
        if let Some((_, text)) = KNOWN.iter().find(|(known, _)| *known == name) {
            return Machine::parse(text).map_err(|e| format!("{name}: {e}"));
        }
        let path = Path::new(name);
        let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
        if !is_file {
            let known: Vec<&str> = Machine::names().collect();
            return Err(format!("--machine {name}: is neither a file nor one of {}", known.join(", ")));
        }
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text));
        read.map_err(|e| format!("cannot read {name}: {e}"))?;
        if text.len() as u64 > LONGEST {
            return Err(format!("{name}: is too long to describe a machine"));
        }
        let text = String::from_utf8(text).map_err(|_| format!("{name}: is not text"))?;
        Machine::parse(&text).map_err(|e| format!("{name}: {e}"))
    }

    /// Reads a description in TOML, or in JSON where it begins with a brace.
    ///
    /// # Errors
    /// In one line: what is wrong with it.
    pub fn parse(text: &str) -> Result<Machine, String> {
        let json = text.trim_start().starts_with('{');
        let machine: Result<Machine, String> = if json {
            let mut from = serde_json::Deserializer::from_str(text);
            // What is wrong with a value is told with its field.
            serde_path_to_error::deserialize(&mut from).map_err(|e| e.to_string()).and_then(|machine| {
                from.end().map_err(|e| e.to_string())?;
                Ok(machine)
            })
        } else {
            toml::from_str(text).map_err(|e: toml::de::Error| {
                let line = e.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
                let at = line.map_or(String::new(), |line| format!("line {line}: "));
                format!("{at}{}", e.message().lines().next().unwrap_or("is no TOML"))
            })
        };
        let machine = machine?;
        machine.check()?;
        Ok(machine)
    }

    /// Its description as a file that [`Machine::parse`] reads.
    pub fn describe(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// What no machine has.
    fn check(&self) -> Result<(), String> {
        const ISAS: [&str; 5] = ["avx512-bf16", "avx512", "avx2", "neon", "plain"];
        if !ISAS.contains(&self.isa.as_str()) {
            return Err(format!("isa is {:?}; it must be one of {}", self.isa, ISAS.join(", ")));
        }
        if self.name.trim().is_empty() {
            return Err("name is empty; call it something".into());
        }
        // It goes to terminals and into charts.
        if self.name.chars().count() > LONGEST_NAME || self.name.chars().any(char::is_control) {
            return Err(format!("name must be one line of at most {LONGEST_NAME} characters"));
        }
        whole("threads", self.threads, 1024)?;
        number("memory-gib", self.memory_gib, 0.0625, 65_536.0)?;
        number("read-gbps", self.read_gbps, 0.1, 100_000.0)?;
        number("f32-gflops", self.f32_gflops, 0.1, 1e7)?;
        number("int8-tops", self.int8_tops, 1e-4, 1e5)?;
        self.drive.as_ref().map_or(Ok(()), Drive::check)
    }
}

fn number(name: &str, value: f64, least: f64, most: f64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{name} is {value}; it must be a number from {least} to {most}"))
}

fn whole(name: &str, value: usize, most: usize) -> Result<(), String> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{name} is {value}; it must be a whole number from 1 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_in_order_and_says_where_it_is_from() {
        for name in Machine::names() {
            let machine = Machine::find(name).unwrap();
            assert!(!machine.source.is_empty() && machine.drive.is_some(), "{name}");
            assert_eq!(Machine::parse(&machine.describe()).unwrap(), machine);
            assert_eq!(Machine::parse(&serde_json::to_string(&machine).unwrap()).unwrap(), machine);
        }
    }

    #[test]
    fn nonsense_is_refused_in_one_line_that_names_it() {
        let fine = Machine::find("ryzen-5950x-64g").unwrap().describe();
        assert!(Machine::parse(&fine).is_ok());
        let with = |field: &str, value: &str| {
            let line = |line: &str| match line.split_once(" = ") {
                Some((key, _)) if key == field => format!("{key} = {value}\n"),
                _ => format!("{line}\n"),
            };
            Machine::parse(&fine.lines().map(line).collect::<String>())
        };
        assert!(with("read-gbps", "40").is_ok());
        for field in ["memory-gib", "read-gbps", "f32-gflops", "int8-tops", "threads", "latency-us", "endurance-tb"] {
            for value in ["-1", "nan", "inf", "-inf", "1e300", "\"fast\"", "[]", "true", "1e400"] {
                let message = with(field, value).unwrap_err();
                assert!(message.lines().count() == 1, "{field} {value}: {message}");
            }
            if field != "latency-us" {
                let message = with(field, "0").unwrap_err();
                assert!(message.contains(field) && message.contains("must be"), "{message}");
            }
        }
        assert!(with("isa", "\"z80\"").unwrap_err().contains("avx2"));
        for name in ["\" \"", "\"a\\nb\"", "\"\\u001b[31m\"", &format!("\"{}\"", "a".repeat(121))] {
            assert!(with("name", name).unwrap_err().contains("name"), "{name}");
        }
        let without = |field: &str| {
            let lines = fine.lines().filter(|line| !line.starts_with(field));
            Machine::parse(&lines.map(|line| format!("{line}\n")).collect::<String>())
        };
        for field in ["name", "isa", "threads", "memory-gib", "f32-gflops", "int8-tops"] {
            let message = without(field).unwrap_err();
            assert!(message.contains("missing") && message.contains(field), "{message}");
        }
        for text in ["", "{", "{}", "[1]", "x = ", "\u{0}", "name = \"x\"\nspeed = 3", "null", "3"] {
            assert!(Machine::parse(text).is_err(), "{text:?}");
        }
        let json = serde_json::to_value(Machine::find("ryzen-5950x-64g").unwrap()).unwrap();
        for (at, value, says) in [
            ("/threads", "2.5", "threads: "),
            ("/drive/read-gbps", "\"fast\"", "read-gbps: "),
            ("/drive/count", "[]", "count: "),
            ("/drive", "[1, 2]", "expected a drive's fields"),
            ("/drive", "7", "drive: "),
            ("/isa", "null", "isa: "),
        ] {
            let mut json = json.clone();
            *json.pointer_mut(at).unwrap() = serde_json::from_str(value).unwrap();
            let message = Machine::parse(&json.to_string()).unwrap_err();
            assert!(message.contains(says) && message.lines().count() == 1, "{at} {value}: {message}");
        }
        let list = format!("drive = [1, 2]\n{}", fine.split("[drive]").next().unwrap());
        let message = Machine::parse(&list).unwrap_err();
        assert!(message.contains("a drive's fields"), "{message}");
        assert!(Machine::find("no-such-machine").unwrap_err().contains("ryzen-5950x-64g"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        std::fs::write(&path, vec![b'a'; 1 << 17]).unwrap();
        assert!(Machine::find(path.to_str().unwrap()).unwrap_err().contains("too long"));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(Machine::find(path.to_str().unwrap()).unwrap_err().contains("not text"));
        assert!(Machine::find(folder.path().to_str().unwrap()).unwrap_err().contains("neither a file"));
    }
}
