//! Which GPUs a worker offers.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::ConfigError;

/// The most GPUs that one machine is believed to have: beyond it the number is a typing error.
const GPUS_MAX: u32 = 256;
/// Where the driver lists its devices on Linux.
const DRIVER_LIST: &str = "/proc/driver/nvidia/gpus";

/// A choice of GPUs, as written after `--gpus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuSpec {
    /// The first so many.
    Count(u32),
    /// Exactly these: indices, or ids such as `GPU-…`.
    Devices(Vec<String>),
    /// All that the driver lists.
    All,
}

impl FromStr for GpuSpec {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = |why: &str| Err(ConfigError::Gpus { text: text.to_owned(), why: why.to_owned() });
        // Quotes arrive literally from shells and compose files that need them around the comma.
        let plain = text.trim().trim_matches(['"', '\'']);
        if plain == "all" {
            return Ok(Self::All);
        }
        if let Ok(count) = plain.parse::<u32>() {
            return if count > GPUS_MAX { refuse("so many fit no machine") } else { Ok(Self::Count(count)) };
        }
        let Some(list) = plain.strip_prefix("device=") else {
            return refuse("it is none of the known forms");
        };
        let mut seen = BTreeSet::new();
        for device in list.split(',').map(str::trim) {
            if !is_device(device) {
                return refuse("a device is an index, or an id that starts with GPU- or MIG-");
            }
            if !seen.insert(device) {
                return refuse("a device is named twice");
            }
        }
        Ok(Self::Devices(list.split(',').map(|device| device.trim().to_owned()).collect()))
    }
}

fn is_device(text: &str) -> bool {
    let is_index = !text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_id = (text.starts_with("GPU-") || text.starts_with("MIG-"))
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/'));
    is_index || is_id
}

/// The devices that `spec` means on this machine, as the engine takes them.
///
/// # Errors
///
/// [`ConfigError::Gpus`] when all are wanted and the driver lists none.
pub(crate) fn devices(spec: &GpuSpec) -> Result<Vec<String>, ConfigError> {
    let first = |count: u32| (0..count).map(|index| index.to_string()).collect::<Vec<_>>();
    match spec {
        GpuSpec::Count(count) => Ok(first(*count)),
        GpuSpec::Devices(devices) => Ok(devices.clone()),
        GpuSpec::All => {
            let listed = std::fs::read_dir(DRIVER_LIST).map_or(0, Iterator::count);
            match u32::try_from(listed) {
                Ok(count @ 1..) => Ok(first(count)),
                Ok(0) | Err(_) => Err(ConfigError::Gpus {
                    text: "all".to_owned(),
                    why: format!("the NVIDIA driver lists none in {DRIVER_LIST}"),
                }),
            }
        }
    }
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
    }

    #[test]
    fn unknown_text_empty_entries_and_duplicates_are_refused() {
        for text in ["", "x", "-1", "1.5", "device=", "device=1,,2", "device=1,1", "device=a", "GPU-1", "9999"] {
            assert!(text.parse::<GpuSpec>().is_err(), "{text}");
        }
    }
}
