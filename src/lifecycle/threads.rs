//! The one place that starts threads: each has a name, an explicit stack and an owner that joins
//! it.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::prctl;

use super::{clock, heap};

/// Bytes of stack for every thread. Only touched pages become resident, so one size serves all:
/// deep work (a handshake, name resolution) fits, an idle relay thread holds two or three pages,
/// and the C library can reuse any finished thread's stack for any other.
///
/// The C library keeps up to 40 MiB of finished threads' stacks, two or three pages of each
/// resident: at 1 MiB that is 40 stacks, at 256 KiB 160 (1.6 MiB resident, measured). Where
/// addresses are 32 bits wide, thousands of streams would not find room for more than the latter.
pub const STACK: usize = if cfg!(target_pointer_width = "64") { 1024 * 1024 } else { 256 * 1024 };

/// The longest name the kernel keeps (`TASK_COMM_LEN` less its NUL).
const NAME_MAX: usize = 15;

/// Starts a thread. `name` is cut to 15 bytes. An error means that the system has no thread left;
/// the caller refuses the work.
#[expect(clippy::disallowed_methods, reason = "this is the room that starts threads")]
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let cut = name.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= NAME_MAX);
    let name = name.get(..cut.last().unwrap_or(0)).unwrap_or_default();
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work)
}

/// Threads that do one job after another, each under the job's own name. A thread without a job
/// waits half a second for the next one and then ends; ended threads are joined by those that go
/// on. Can wait for all jobs.
///
/// Starting a thread costs several times what handing it a job does (stack, guard page, signal
/// stack, exit): it was a quarter of the processor time of a new stream.
///
/// Clones share the threads.
#[derive(Clone, Debug)]
pub struct Group(Arc<GroupInner>);

#[derive(Debug)]
struct GroupInner {
    state: Mutex<State>,
    /// Notified when a job or a thread ends.
    ended: Condvar,
    /// A job is handed over only while a thread waits for one: the channel holds none.
    jobs: (Sender<Job>, Receiver<Job>),
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    jobs: usize,
    threads: HashMap<u64, JoinHandle<()>>,
    ended: Vec<u64>,
    next: u64,
    /// The most threads since memory was last given back.
    peak: usize,
    /// Whether a burst is on its way out.
    ebbs: bool,
}

impl State {
    /// Notes that a thread ends. Whether a burst is over with it, and memory to be given back: when
    /// three quarters of the threads have ended, again of the rest, and with the last one.
    fn end(&mut self, id: u64) -> bool {
        self.ended.push(id);
        let left = self.threads.len() - self.ended.len();
        let over = self.peak >= BURST && left <= self.peak / 4;
        let last = self.ebbs && left == 0;
        if over {
            self.peak = left;
        }
        self.ebbs = (self.ebbs || over) && !last;
        over || last
    }
}

struct Job {
    name: String,
    work: Box<dyn FnOnce() + Send>,
}

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

impl Group {
    /// A group without threads.
    pub fn new() -> Self {
        Self(Arc::new(GroupInner {
            state: Mutex::default(),
            ended: Condvar::new(),
            jobs: bounded(0),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Does a job on a thread of this group. An error means that the system has no thread left;
    /// the caller refuses the work.
    pub fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.lock().jobs += 1;
        let job = Job { name: name.to_owned(), work: Box::new(work) };
        let Err(job) = self.0.jobs.0.try_send(job) else { return Ok(()) };
        let job = job.into_inner();
        let group = self.clone();
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        // The lock is held until the handle is stored, so the thread cannot end before that.
        match spawn(name, move || group.work(id, job)) {
            Ok(handle) => {
                state.threads.insert(id, handle);
                state.peak = state.peak.max(state.threads.len());
                Ok(())
            }
            Err(error) => {
                state.jobs -= 1;
                Err(error)
            }
        }
    }

    /// Jobs that are not done.
    pub fn running(&self) -> usize {
        self.lock().jobs
    }

    /// Waits until every job is done, `limit` at the most. Returns how many are not.
    pub fn wait(&self, limit: Duration) -> usize {
        let end = clock::now() + limit;
        let mut state = self.lock();
        while state.jobs > 0 {
            let Some(left) = end.checked_duration_since(clock::now()).filter(|d| !d.is_zero())
            else {
                break;
            };
            state =
                self.0.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.jobs
    }

    /// What a thread does: its first job, then whatever comes while it waits.
    fn work(&self, id: u64, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            // The kernel cuts the name; failing to set it only makes `ps` less telling.
            if let Ok(name) = CString::new(job.name)
                && let Err(error) = prctl::set_name(&name)
            {
                log::trace!("cannot name a thread: {error}");
            }
            if catch_unwind(AssertUnwindSafe(job.work)).is_err() {
                log::error!("a bug ended the work of a thread; its connection was dropped");
            }
            self.lock().jobs -= 1;
            self.0.ended.notify_all();
            next = self.wait_for_job();
            // Those that waited in vain are the last to go, and leave few unjoined behind.
            self.reap();
        }
        if self.lock().end(id) {
            heap::trim();
        }
    }

    fn wait_for_job(&self) -> Option<Job> {
        let waiting = &self.0.waiting;
        let next = if waiting.fetch_add(1, Ordering::AcqRel) < MOST_WAITING {
            if let Err(error) = prctl::set_name(c"waiting") {
                log::trace!("cannot name a thread: {error}");
            }
            self.0.jobs.1.recv_timeout(WAIT).ok()
        } else {
            None
        };
        waiting.fetch_sub(1, Ordering::AcqRel);
        next
    }

    /// Joins the threads that have ended. A finished thread keeps its stack until then.
    fn reap(&self) {
        let done: Vec<_> = {
            let mut state = self.lock();
            let State { threads, ended, .. } = &mut *state;
            let done = ended.drain(..).filter_map(|id| threads.remove(&id)).collect();
            if threads.len() < threads.capacity() / 8 {
                threads.shrink_to_fit();
            }
            done
        };
        for handle in done {
            if handle.join().is_err() {
                log::error!("a bug ended a thread");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How long a thread without a job waits for the next one.
const WAIT: Duration = Duration::from_millis(500);

/// Threads that make a burst: fewer hold too little memory to pause for.
const BURST: usize = 8;

/// Threads of one group that may wait for jobs: beyond a burst of this many, starting one anew is
/// not what limits.
const MOST_WAITING: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_to_what_the_kernel_keeps() {
        let name = spawn("agent-1234567-downé", || thread::current().name().map(str::to_owned));
        assert_eq!(name.unwrap().join().unwrap().unwrap(), "agent-1234567-d");
    }

    #[test]
    fn a_group_waits_for_its_jobs_and_survives_a_panic() {
        let group = Group::new();
        let (release, gate) = bounded::<()>(0);
        group.spawn("waits", move || assert!(gate.recv().is_err())).unwrap();
        group.spawn("panics", || panic!("on purpose")).unwrap();
        assert_ne!(group.wait(Duration::from_millis(1)), 0);
        drop(release);
        assert_eq!(group.wait(Duration::from_secs(60)), 0);
        assert_eq!(group.running(), 0);
    }

    #[test]
    fn every_job_is_done_under_its_name() {
        let group = Group::new();
        let (done, results) = crossbeam_channel::unbounded();
        for number in 0..500 {
            let done = done.clone();
            group
                .spawn(&format!("job-{number}"), move || {
                    let name = prctl::get_name().unwrap().into_string().unwrap();
                    done.send((number, name)).unwrap();
                })
                .unwrap();
        }
        assert_eq!(group.wait(Duration::from_secs(60)), 0);
        let mut results: Vec<_> = results.try_iter().collect();
        results.sort();
        let expected: Vec<_> = (0..500).map(|number| (number, format!("job-{number}"))).collect();
        assert_eq!(results, expected);
    }
}
