//! What a process used: wall and CPU time of a command, CPU time and memory of a running daemon.

use std::path::Path;
use std::process::{Command, Stdio};

/// Seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    pub wall_s: f64,
    pub cpu_s: f64,
}

/// Runs a command to its end.
pub fn timed(program: &Path, arguments: &[&str]) -> Used {
    // bash reports its children's times; nothing in std does.
    let output = Command::new("bash")
        .args(["-c", "TIMEFORMAT='TIMES %R %U %S'; time \"$@\" >/dev/null", "timed"])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program:?}: {text}");
    let line = text.lines().find_map(|line| line.strip_prefix("TIMES ")).unwrap_or_else(|| panic!("{text}"));
    let times: Vec<f64> = line.split(' ').map(|part| part.parse().unwrap()).collect();
    Used { wall_s: times[0], cpu_s: times[1] + times[2] }
}

/// The run with the median wall time.
pub fn median(mut runs: Vec<Used>) -> Used {
    runs.sort_by(|a, b| a.wall_s.total_cmp(&b.wall_s));
    runs[runs.len() / 2]
}

/// CPU seconds of a process so far, all its threads.
pub fn cpu_s(pid: u32) -> f64 {
    cpu_of(&std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap())
}

/// CPU seconds by the name of the thread: `replication` reads and decodes, the workers map, hash and write.
pub fn thread_cpu_s(pid: u32) -> std::collections::BTreeMap<String, f64> {
    let mut found = std::collections::BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // A thread may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let name = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap().0.to_owned();
        *found.entry(name).or_insert(0.0) += cpu_of(&stat);
    }
    found
}

fn cpu_of(stat: &str) -> f64 {
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // The kernel's USER_HZ is 100 on every Linux that runs Debian.
    ticks as f64 / 100.0
}

/// A line of `/proc/PID/status` in MiB: `VmHWM` (peak) or `VmRSS` (now).
pub fn memory_mib(pid: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib: f64 = found.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    kib / 1024.0
}
