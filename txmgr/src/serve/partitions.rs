//! The partitions that this process has: those of the calls, as its proxy says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bluebox_core::ComponentName;
use bluebox_core::log::{Log, Topic};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::caller::Caller;
use super::counts::Counts;
use super::owner::{self, Command, End, Owning, Reply};
use super::{Settings, Surroundings};
use crate::effect::Answer;
use crate::line::Rules;
use crate::partition::{NoAnswer, NotServing};

/// Requests that wait for one partition; beyond, those who ask wait.
const WAITING: usize = 1024;
/// The pause before a partition is taken again that another process has fenced: that one may be right, and this one's proxy not know it yet. It doubles each time, so that two that both believe
/// to have it don't take it from each other without end.
const TAKE_AGAIN: Duration = Duration::from_millis(500);
/// The longest such pause.
const LONGEST_TAKE_AGAIN: Duration = Duration::from_secs(4);
/// Who has had a partition for so long was right.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a request waits for its partition to be read.
const PATIENCE: Duration = Duration::from_secs(5);

struct Owned {
    tenure: u64,
    task: AbortHandle,
    commands: mpsc::Sender<Command>,
    serving: watch::Receiver<bool>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The partitions of transactions that this process has.
pub(super) struct Partitions {
    name: ComponentName,
    log: Arc<dyn Log>,
    topic: Topic,
    rules: Arc<Rules>,
    caller: Arc<Caller>,
    counts: Counts,
    owned: Mutex<BTreeMap<u32, Owned>>,
}

impl Partitions {
    pub(super) fn new(settings: Settings, around: &Surroundings, caller: Arc<Caller>, counts: Counts) -> Arc<Self> {
        let (log, topic) = (Arc::clone(&around.log), around.transactions.clone());
        Arc::new(Self { name: settings.name, log, topic, rules: Arc::new(settings.rules), caller, counts, owned: Mutex::default() })
    }

    /// Takes and gives up partitions as the proxy does. Never done while there is a proxy.
    pub(super) async fn follow(self: Arc<Self>, mut tenures: watch::Receiver<BTreeMap<(ComponentName, u32), u64>>) {
        loop {
            let now: BTreeMap<u32, u64> =
                tenures.borrow_and_update().iter().filter(|((name, _), _)| *name == self.name).map(|((_, number), tenure)| (*number, *tenure)).collect();
            self.have(&now);
            if tenures.changed().await.is_err() {
                return self.have(&BTreeMap::new());
            }
        }
    }

    fn have(&self, now: &BTreeMap<u32, u64>) {
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        owned.retain(|number, one| now.get(number) == Some(&one.tenure));
        for (number, tenure) in now {
            if !owned.contains_key(number) {
                owned.insert(*number, self.take(*number, *tenure));
            }
        }
    }

    fn take(&self, number: u32, tenure: u64) -> Owned {
        let (commands, mut asked) = mpsc::channel(WAITING);
        let (serves, serving) = watch::channel(false);
        let owning = Owning {
            log: Arc::clone(&self.log),
            place: self.topic.partition(number),
            rules: Arc::clone(&self.rules),
            caller: Arc::clone(&self.caller),
            counts: self.counts.clone(),
        };
        let forget = Forget(self.counts.clone(), number);
        let task = tokio::spawn(async move {
            let _forget = forget;
            let mut pause = TAKE_AGAIN;
            loop {
                let began = tokio::time::Instant::now();
                if owner::run(&owning, &mut asked, &serves).await != End::Again {
                    return;
                }
                if began.elapsed() >= SETTLED {
                    pause = TAKE_AGAIN;
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(LONGEST_TAKE_AGAIN);
            }
        });
        Owned { tenure, task: task.abort_handle(), commands, serving }
    }

    /// The partitions that this process has.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Asks a partition, once it is read.
    pub(super) async fn ask(&self, number: u32, command: impl FnOnce(Reply) -> Command) -> Result<Answer, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.tell(number, command(reply)).await?;
        answer.await.unwrap_or(Err(NotServing.into()))
    }

    /// Tells a partition something, once it is read.
    pub(super) async fn tell(&self, number: u32, command: Command) -> Result<(), NotServing> {
        let (commands, mut serving) = {
            let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
            let one = owned.get(&number).ok_or(NotServing)?;
            (one.commands.clone(), one.serving.clone())
        };
        let read = tokio::time::timeout(PATIENCE, serving.wait_for(|serves| *serves)).await.is_ok_and(|serves| serves.is_ok());
        if !read {
            return Err(NotServing);
        }
        commands.send(command).await.map_err(|_| NotServing)
    }
}

/// What was counted of a partition is forgotten when it is given up, however that is.
struct Forget(Counts, u32);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}
