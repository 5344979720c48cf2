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
        // A child may have ended since it was listed.
        let Some(status) = read(root, pid, "status")? else { continue };
        sum.resident += kib_line(&status, "VmRSS:").unwrap_or(0) << 10;
        let Some(rollup) = read(root, pid, "smaps_rollup")? else { continue };
        sum.proportional += kib_line(&rollup, "Pss:").unwrap_or(0) << 10;
    }
    Ok(sum)
}

/// Processor time of `root` and all its descendants in milliseconds, those that have ended included.
pub(crate) fn cpu_ms(root: u32) -> Result<f64> {
    let mut ticks = 0;
    for pid in family(root)? {
        let Some(stat) = read(root, pid, "stat")? else { continue };
        // proc(5): utime, stime and both of reaped children are fields 14 to 17; the name in field 2
        // may hold spaces.
        let fields = after_name(&stat);
        ticks += fields.iter().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum::<u64>();
    }
    // USER_HZ is 100 on every architecture Debian's kernels run on.
    Ok(ticks as f64 * 10.0)
}

/// A file of a process; `None` when that is a child that is gone.
fn read(root: u32, pid: u32, file: &str) -> Result<Option<String>> {
    match fs::read_to_string(format!("/proc/{pid}/{file}")) {
        Ok(text) => Ok(Some(text)),
        Err(_) if pid != root => Ok(None),
        Err(error) => Err(error.into()),
    }
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
