//! Which GPUs a worker offers, as written after `--gpus`. What that means on a machine is `crate::gpus`'s business.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::ConfigError;

/// The most GPUs that one machine is believed to have: beyond it the number is a typing error.
const GPUS_MAX: u32 = 256;

/// A choice of GPUs, as written after `--gpus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuSpec {
    /// The first so many.
    Count(u32),
    /// Exactly these: indices, ids such as `GPU-…`, or names of the container device interface such as `amd.com/gpu=0`.
    Devices(Vec<String>),
    /// All that there are; there must be some.
    All,
    /// All that there are, if any: what the oldest deployments' `true` means.
    Any,
}

impl fmt::Display for GpuSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(out, "{count}"),
            Self::Devices(devices) => write!(out, "device={}", devices.join(",")),
            Self::All => out.write_str("all"),
            Self::Any => out.write_str("true"),
        }
    }
}

impl FromStr for GpuSpec {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = |why: &str| Err(ConfigError::Gpus { text: text.to_owned(), why: why.to_owned() });
        // Quotes arrive literally from shells and compose files that need them around the comma.
        let plain = text.trim().trim_matches(['"', '\'']);
        match plain {
            "all" => return Ok(Self::All),
            // `true` and `false` are how the oldest deployments say it, also on machines without any.
            "true" => return Ok(Self::Any),
            "none" | "false" => return Ok(Self::Count(0)),
            _ => {}
        }
        if let Ok(count) = plain.parse::<u32>() {
            return if count > GPUS_MAX { refuse("so many fit no machine") } else { Ok(Self::Count(count)) };
        }
        let list = match plain.strip_prefix("device=") {
            Some(list) => list,
            // Ids can be nothing else; a bare index would be taken for a number of GPUs.
            None if plain.split(',').all(|device| is_id(device.trim())) => plain,
            None => return refuse("it is none of the known forms"),
        };
        let mut seen = BTreeSet::new();
        for device in list.split(',').map(str::trim) {
            if !(is_index(device) || is_id(device) || is_cdi(device)) {
                return refuse(
                    "a device is an index, an id that starts with GPU- or MIG-, or a name such as amd.com/gpu=0",
                );
            }
            if !seen.insert(device) {
                return refuse("a device is named twice");
            }
        }
        Ok(Self::Devices(list.split(',').map(|device| device.trim().to_owned()).collect()))
    }
}

pub(crate) fn is_index(text: &str) -> bool {
    !text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_id(text: &str) -> bool {
    (text.starts_with("GPU-") || text.starts_with("MIG-"))
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/'))
}

/// `vendor.example/class=name`: what the engine takes through the container device interface.
pub(crate) fn is_cdi(text: &str) -> bool {
    let is_word = |word: &str, more: &[u8]| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    text.split_once('=').is_some_and(|(kind, name)| {
        let is_kind =
            kind.split_once('/').is_some_and(|(vendor, class)| is_word(vendor, b"._-") && is_word(class, b"_-"));
        is_kind && is_word(name, b"._:-")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let read = |text: &str| text.parse::<GpuSpec>().unwrap();
        assert_eq!(read("0"), GpuSpec::Count(0));
        assert_eq!(read("2"), GpuSpec::Count(2));
        assert_eq!(read("\"all\""), GpuSpec::All);
        let devices = |list: &[&str]| GpuSpec::Devices(list.iter().map(|&device| device.to_owned()).collect());
        assert_eq!(read("device=1,3"), devices(&["1", "3"]));
        assert_eq!(read("'device=1'"), devices(&["1"]));
        assert_eq!(read("device=GPU-8a2f-01,0"), devices(&["GPU-8a2f-01", "0"]));
        assert_eq!(read("GPU-8a2f-01, GPU-8a2f-02"), devices(&["GPU-8a2f-01", "GPU-8a2f-02"]));
        assert_eq!(read("device=amd.com/gpu=0,nvidia.com/gpu=all"), devices(&["amd.com/gpu=0", "nvidia.com/gpu=all"]));
        assert_eq!((read("true"), read("false"), read("none")), (GpuSpec::Any, GpuSpec::Count(0), GpuSpec::Count(0)));
    }

    #[test]
    fn unknown_text_empty_entries_and_duplicates_are_refused() {
        for text in [
            "",
            "x",
            "-1",
            "1.5",
            "device=",
            "device=1,,2",
            "device=1,1",
            "device=a",
            "0,1",
            "GPU-1,0",
            "GPU-1,GPU-1",
            "9999",
            "amd.com/gpu=0",
            "device=amd.com/gpu=",
            "device=gpu=0",
            "device=a/b=c d",
        ] {
            assert!(text.parse::<GpuSpec>().is_err(), "{text}");
        }
    }
}
