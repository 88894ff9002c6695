//! From a choice of GPUs to the devices that the engine is asked for.
//!
//! NVIDIA's own library would have to be loaded at run time, which a statically linked program cannot do. The kernel's driver
//! lists the same devices in the same order (by PCI address), and says their ids; other makers' devices are those that the
//! engine itself has discovered through the container device interface.

mod driver;

use std::collections::BTreeSet;

pub(crate) use driver::listed;

use crate::config::{ConfigError, GpuSpec, is_cdi, is_index};

/// What the machine has, as far as can be told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    /// The ids of NVIDIA's devices, by index; empty where the driver is not to be seen (another machine, another system).
    pub(crate) driver: Vec<String>,
    /// The devices that the engine has discovered.
    pub(crate) cdi: Vec<String>,
}

/// The devices that a worker offers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gpus {
    offered: Vec<String>,
    /// As [`Machine::driver`].
    known: Vec<String>,
}

impl Gpus {
    /// What `spec` means on `machine`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Gpus`] for devices that the machine is known not to have, and for one that is named twice.
    pub(crate) fn choose(spec: &GpuSpec, machine: Machine) -> Result<Self, ConfigError> {
        let Machine { driver: known, cdi } = machine;
        let refuse = |why: String| ConfigError::Gpus { text: spec.to_string(), why };
        let offered = match spec {
            GpuSpec::Count(count) if !known.is_empty() && *count as usize > known.len() => {
                return Err(refuse(format!("the driver lists {}", known.len())));
            }
            GpuSpec::Count(count) => first(*count as usize),
            GpuSpec::Devices(devices) => devices.clone(),
            GpuSpec::All | GpuSpec::Any if !known.is_empty() => first(known.len()),
            GpuSpec::All | GpuSpec::Any => whole_devices(&cdi),
        };
        if *spec == GpuSpec::All && offered.is_empty() {
            let why = format!("neither the NVIDIA driver ({}) nor the container engine lists any here", driver::LIST);
            return Err(refuse(why));
        }
        let gpus = Self { offered, known };
        let mut seen = BTreeSet::new();
        let all_of = |device: &str| device.strip_suffix("=all").map(|kind| format!("{kind}="));
        for all in gpus.offered.iter().filter_map(|device| all_of(device)) {
            let is_nvidia = all == "nvidia.com/gpu=";
            let is_in_it = |device: &&String| device.starts_with(&all) || (is_nvidia && !is_cdi(device));
            if gpus.offered.iter().filter(is_in_it).count() > 1 {
                return Err(refuse(format!("{all}all is all of them, and others of these are named, too")));
            }
        }
        for device in &gpus.offered {
            let index = gpus.index(device);
            let is_missing = !gpus.known.is_empty() && index.is_none() && !is_part(device) && !is_cdi(device);
            if is_missing || index.is_some_and(|index| !gpus.known.is_empty() && index >= gpus.known.len()) {
                return Err(refuse(format!("the driver lists no {device}, only {}", gpus.known.join(", "))));
            }
            if !seen.insert(index.map_or_else(|| device.clone(), |index| index.to_string())) {
                return Err(refuse(format!("{device} is the same device as another one named")));
            }
        }
        Ok(gpus)
    }

    /// As the engine takes them.
    pub(crate) fn offered(&self) -> &[String] {
        &self.offered
    }

    /// How a device is called among those offered: a container that is adopted may know it by its other name.
    pub(crate) fn name_of(&self, device: &str) -> String {
        let index = self.index(device);
        let same = |offered: &&String| *offered == device || (index.is_some() && self.index(offered) == index);
        self.offered.iter().find(same).map_or_else(|| device.to_owned(), String::clone)
    }

    /// A device's index, where it can be told.
    fn index(&self, device: &str) -> Option<usize> {
        if is_index(device) {
            return device.parse().ok();
        }
        let device = device.strip_prefix("nvidia.com/gpu=").unwrap_or(device);
        if is_index(device) {
            return device.parse().ok();
        }
        self.known.iter().position(|id| id == device)
    }
}

fn first(count: usize) -> Vec<String> {
    (0..count).map(|index| index.to_string()).collect()
}

/// A part of a device that shares it with others: the driver's list names whole ones.
fn is_part(device: &str) -> bool {
    device.starts_with("MIG-")
}

/// One name for each whole device: makers list each by index and by id, and all of them together as `all`.
fn whole_devices(cdi: &[String]) -> Vec<String> {
    let is_indexed =
        |name: &&String| name.split_once('=').is_some_and(|(kind, device)| kind.ends_with("/gpu") && is_index(device));
    let mut devices: Vec<(usize, String)> =
        cdi.iter().filter(is_indexed).map(|name| (name.len(), name.clone())).collect();
    // 10 after 9.
    devices.sort_unstable();
    devices.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(driver: &[&str], cdi: &[&str]) -> Machine {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Machine { driver: owned(driver), cdi: owned(cdi) }
    }

    fn offered(spec: &str, machine: Machine) -> Result<Vec<String>, String> {
        let gpus = Gpus::choose(&spec.parse().unwrap(), machine);
        gpus.map(|gpus| gpus.offered().to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_machine_whose_devices_are_not_known_is_believed_to_have_what_is_named() {
        assert_eq!(offered("2", machine(&[], &[])).unwrap(), ["0", "1"]);
        assert_eq!(offered("device=7,GPU-a", machine(&[], &[])).unwrap(), ["7", "GPU-a"]);
        assert_eq!(offered("none", machine(&[], &[])).unwrap(), [""; 0]);
        assert!(offered("all", machine(&[], &[])).unwrap_err().contains("lists any"));
    }

    #[test]
    fn a_device_that_the_driver_does_not_list_is_refused() {
        let two = || machine(&["GPU-a", "GPU-b"], &[]);
        assert_eq!(offered("all", two()).unwrap(), ["0", "1"]);
        assert_eq!(offered("device=GPU-b,0,MIG-c", two()).unwrap(), ["GPU-b", "0", "MIG-c"]);
        for spec in ["3", "device=2", "device=GPU-c"] {
            assert!(offered(spec, two()).is_err(), "{spec}");
        }
    }

    #[test]
    fn one_device_by_two_names_is_refused() {
        let two = || machine(&["GPU-a", "GPU-b"], &[]);
        assert!(offered("device=0,GPU-a", two()).unwrap_err().contains("same device"));
        assert!(offered("device=0,nvidia.com/gpu=0", machine(&[], &[])).unwrap_err().contains("same device"));
        assert!(offered("device=0,amd.com/gpu=0", machine(&[], &[])).is_ok());
        assert!(offered("device=amd.com/gpu=all,0", machine(&[], &[])).is_ok());
        for both in ["amd.com/gpu=all,amd.com/gpu=1", "nvidia.com/gpu=all,0", "GPU-a,nvidia.com/gpu=all"] {
            assert!(
                offered(&format!("device={both}"), machine(&[], &[])).unwrap_err().contains("all of them"),
                "{both}"
            );
        }
    }

    #[test]
    fn all_of_an_engine_is_each_whole_device_once() {
        let cdi = ["amd.com/gpu=10", "amd.com/gpu=9", "amd.com/gpu=all", "amd.com/gpu=0x1a2b", "example.com/net=0"];
        assert_eq!(offered("all", machine(&[], &cdi)).unwrap(), ["amd.com/gpu=9", "amd.com/gpu=10"]);
    }

    #[test]
    fn an_adopted_device_is_known_by_either_name() {
        let gpus = Gpus::choose(&"device=GPU-b".parse().unwrap(), machine(&["GPU-a", "GPU-b"], &[])).unwrap();
        assert_eq!((gpus.name_of("1").as_str(), gpus.name_of("GPU-b").as_str()), ("GPU-b", "GPU-b"));
        assert_eq!(gpus.name_of("0"), "0");
    }
}
