//! Memory, load, what waits for the processor, memory and disks (PSI), what the kernel killed, and whether a reboot is due.

use std::fmt::Display;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use procfs::{Current, LoadAverage, Meminfo};

use crate::model::{Failure, Family, Reason, Sight};
use crate::probe::{Looking, Probe, Recorder};

static TOTAL: Family = Family::gauge("node_memory_MemTotal_bytes", "How much memory the host has");
static AVAILABLE: Family = Family::gauge("node_memory_MemAvailable_bytes", "How much memory programs may still take without swapping");
static SWAP: Family = Family::gauge("node_memory_SwapTotal_bytes", "How much swap there is");
static SWAP_FREE: Family = Family::gauge("node_memory_SwapFree_bytes", "How much swap is free");
static LOAD: [Family; 3] = [
    Family::gauge("node_load1", "How many processes ran or waited, on average over a minute"),
    Family::gauge("node_load5", "How many processes ran or waited, on average over five minutes"),
    Family::gauge("node_load15", "How many processes ran or waited, on average over fifteen minutes"),
];
static PROCESSORS: Family = Family::gauge("host_processors", "How many processors the host has");
static CPU_WAITING: Family = Family::counter("node_pressure_cpu_waiting_seconds_total", "How long some process waited for a processor");
static IO_WAITING: Family = Family::counter("node_pressure_io_waiting_seconds_total", "How long some process waited for a disk");
static IO_STALLED: Family = Family::counter("node_pressure_io_stalled_seconds_total", "How long all processes waited for a disk");
static MEMORY_WAITING: Family = Family::counter("node_pressure_memory_waiting_seconds_total", "How long some process waited for memory");
static MEMORY_STALLED: Family = Family::counter("node_pressure_memory_stalled_seconds_total", "How long all processes waited for memory");
static OOM: Family = Family::borrowed_counter("node_vmstat_oom_kill", "How many processes the kernel has killed for want of memory");
static REBOOT: Family = Family::gauge("host_reboot_required", "Whether a package that was upgraded wants a reboot");

/// Memory that is left below this share and this size is nearly none.
const SHORT_SHARE: f64 = 0.02;
const SHORT_BYTES: f64 = 512.0 * 1024.0 * 1024.0;
/// All processes wait for memory for more than this share of the time: the host thrashes.
const THRASHES: f32 = 50.0;

/// What the kernel says of the whole host.
pub(super) struct Memory(pub(super) Looking);

/// One look.
#[derive(Debug, Default)]
struct Look {
    samples: Vec<(&'static Family, f64)>,
    /// All processes waited for memory, in percent of the last minute.
    stalled: f32,
    /// Memory that is left, and all.
    memory: Option<(f64, f64)>,
    hidden: Vec<String>,
}

impl Probe for Memory {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async {
            rec.waiting(Reason::AnswerTimeout, "waiting for /proc");
            let look = self.0.at(look).await?;
            look.samples.iter().for_each(|(family, value)| rec.set(family, *value));
            if !look.hidden.is_empty() {
                let missing = look.hidden.join("; ");
                let remedy = "in Proctor's unit, set ProcSubset=all".to_owned();
                rec.sight(if look.samples.is_empty() { Sight::Blind { missing, remedy } } else { Sight::Partial { missing, remedy } });
            }
            look.judge()
        }
        .boxed()
    }
}

impl Look {
    fn judge(&self) -> Result<(), Failure> {
        let mebibytes = |bytes: f64| super::disk::bytes(bytes);
        if let Some((left, all)) = self.memory.filter(|(left, all)| *left < all * SHORT_SHARE && *left < SHORT_BYTES) {
            let what = format!("{} of {} of memory are left: the kernel will kill something soon", mebibytes(left), mebibytes(all));
            return Err(Failure::new(Reason::Saturated, what));
        }
        if self.stalled > THRASHES {
            let what = format!("all processes waited for memory for {:.0} % of the last minute: the host thrashes", self.stalled);
            return Err(Failure::new(Reason::Saturated, what));
        }
        Ok(())
    }
}

fn look() -> Look {
    let mut look = Look::default();
    let hidden = |look: &mut Look, what: &str, error: &dyn Display| look.hidden.push(format!("{what}: {error}"));
    match Meminfo::current() {
        Ok(memory) => {
            look.memory = memory.mem_available.map(|available| (available as f64, memory.mem_total as f64));
            look.samples.extend(memory.mem_available.map(|available| (&AVAILABLE, available as f64)));
            look.samples.extend([
                (&TOTAL, memory.mem_total as f64),
                (&SWAP, memory.swap_total as f64),
                (&SWAP_FREE, memory.swap_free as f64),
            ]);
        }
        Err(error) => hidden(&mut look, "memory", &error),
    }
    match LoadAverage::current() {
        Ok(load) => look.samples.extend(LOAD.iter().zip([load.one, load.five, load.fifteen].map(f64::from))),
        Err(error) => hidden(&mut look, "load", &error),
    }
    if let Ok(processors) = std::thread::available_parallelism() {
        look.samples.push((&PROCESSORS, processors.get() as f64));
    }
    // A kernel without PSI (before 4.20, or psi=0, as Red Hat's) has no such files: nothing is missing then.
    let seconds = |micros: u64| micros as f64 / 1e6;
    if let Ok(cpu) = procfs::CpuPressure::current() {
        look.samples.push((&CPU_WAITING, seconds(cpu.some.total)));
    }
    if let Ok(io) = procfs::IoPressure::current() {
        look.samples.extend([(&IO_WAITING, seconds(io.some.total)), (&IO_STALLED, seconds(io.full.total))]);
    }
    if let Ok(memory) = procfs::MemoryPressure::current() {
        look.samples.extend([(&MEMORY_WAITING, seconds(memory.some.total)), (&MEMORY_STALLED, seconds(memory.full.total))]);
        look.stalled = memory.full.avg60;
    }
    match procfs::vmstat() {
        Ok(vmstat) => look.samples.extend(vmstat.get("oom_kill").map(|kills| (&OOM, *kills as f64))),
        Err(error) => hidden(&mut look, "what the kernel killed", &error),
    }
    let wants = ["/run/reboot-required", "/var/run/reboot-required"].iter().any(|path| std::path::Path::new(path).exists());
    look.samples.push((&REBOOT, f64::from(u8::from(wants))));
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_by_share_and_size_and_a_host_that_thrashes_is_said() {
        const G: f64 = 1024.0 * 1024.0 * 1024.0;
        let look = |left: f64, all: f64, stalled| Look { memory: Some((left * G, all * G)), stalled, ..Look::default() };
        assert!(look(0.5, 8.0, 10.0).judge().is_ok());
        assert!(look(1.0, 64.0, 0.0).judge().is_ok(), "1 GiB is enough to live");
        assert!(look(0.1, 8.0, 0.0).judge().expect_err("is short").detail.starts_with("102.4 MiB of 8.0 GiB"));
        assert!(look(4.0, 8.0, 60.0).judge().expect_err("thrashes").detail.contains("60 % of the last minute"));
        assert!(Look::default().judge().is_ok());
    }

    #[test]
    fn this_host_says_what_a_host_says() {
        let look = look();
        assert!(look.hidden.is_empty(), "{look:?}");
        for name in ["node_memory_MemAvailable_bytes", "node_load15", "node_vmstat_oom_kill", "host_reboot_required", "host_processors"] {
            assert!(look.samples.iter().any(|(family, _)| family.name == name), "{name}");
        }
    }
}
