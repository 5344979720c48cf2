//! What the kernel says about a server: memory and processor time, all of its processes summed.

use std::fs;

use crate::Result;

/// Memory of a server in bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    /// `VmRSS`, which counts a page shared by two processes twice.
    pub(crate) resident: u64,
    /// `Pss`, which shares it out.
    pub(crate) proportional: u64,
}

/// Memory of `root` and all its descendants.
pub(crate) fn memory(root: u32) -> Result<Memory> {
    let mut sum = Memory::default();
    for pid in family(root)? {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        sum.resident += kib_line(&status, "VmRSS:").unwrap_or(0) << 10;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        sum.proportional += kib_line(&rollup, "Pss:").unwrap_or(0) << 10;
    }
    Ok(sum)
}

/// Processor time of `root` and all its descendants in milliseconds.
pub(crate) fn cpu_ms(root: u32) -> Result<f64> {
    let mut ticks = 0;
    for pid in family(root)? {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // proc(5): utime and stime are fields 14 and 15; the name in field 2 may hold spaces.
        let fields = after_name(&stat);
        ticks += fields.iter().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum::<u64>();
    }
    // USER_HZ is 100 on every architecture Debian's kernels run on.
    Ok(ticks as f64 * 10.0)
}

/// `root` first, then its children, their children and so on.
pub(crate) fn family(root: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that ended between the two looks is no longer anyone's child.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(parent) = after_name(&stat).get(1).and_then(|field| field.parse::<u32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(found)
}

fn after_name(stat: &str) -> Vec<&str> {
    stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split_whitespace().collect()
}

fn kib_line(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}
