//! What the NVIDIA driver lists.

use std::path::Path;

/// Where it lists its devices on Linux, each in a folder that is called as its PCI address.
pub(super) const LIST: &str = "/proc/driver/nvidia/gpus";

/// The ids of the devices, by index; empty without a driver.
pub(crate) fn listed() -> Vec<String> {
    listed_in(Path::new(LIST))
}

fn listed_in(list: &Path) -> Vec<String> {
    let Ok(folders) = std::fs::read_dir(list) else { return Vec::new() };
    let mut folders: Vec<_> = folders.filter_map(|folder| Some(folder.ok()?.path())).collect();
    // The library counts by PCI address too.
    folders.sort();
    let about = folders.iter().map(|folder| std::fs::read_to_string(folder.join("information")).unwrap_or_default());
    about.enumerate().filter_map(|(index, about)| id(index, &about)).collect()
}

/// `None` for a device that the driver was told to leave alone: it has no index.
fn id(index: usize, about: &str) -> Option<String> {
    let value = |name: &str| about.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    if value("GPU Excluded:").is_some_and(|excluded| excluded.eq_ignore_ascii_case("yes")) {
        return None;
    }
    // One whose id is not told is still there.
    Some(value("GPU UUID:").map_or_else(|| format!("the one at place {index}"), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_by_address_without_those_excluded() {
        let list = tempfile::TempDir::new().unwrap();
        for (address, id, excluded) in
            [("0000:b1:00.0", "GPU-b", "No"), ("0000:01:00.0", "GPU-a", "No"), ("0000:02:00.0", "GPU-x", "Yes")]
        {
            let folder = list.path().join(address);
            std::fs::create_dir(&folder).unwrap();
            let about =
                format!("Model: \t\t NVIDIA\nGPU UUID: \t {id}\nDevice Minor: \t 0\nGPU Excluded:\t {excluded}\n");
            std::fs::write(folder.join("information"), about).unwrap();
        }
        assert_eq!(listed_in(list.path()), ["GPU-a", "GPU-b"]);
        assert_eq!(listed_in(&list.path().join("missing")), [""; 0]);
    }
}
