//! Time that never jumps.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::model::Millis;

/// The host's time of day, smoothed: it never goes back, and where the host's clock is set, it catches up or waits by
/// a tenth of the time that goes by. A deadline of a minute stays one of about a minute whatever happens to the clock.
#[derive(Debug)]
pub struct Clock {
    state: Mutex<(Instant, Millis)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { state: Mutex::new((Instant::now(), wall())) }
    }
}

impl Clock {
    /// Milliseconds since 1970.
    pub fn now(&self) -> Millis {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = u64::try_from(state.0.elapsed().as_millis()).unwrap_or(u64::MAX);
        if elapsed > 0 {
            state.0 = Instant::now();
            state.1 = follow(state.1, elapsed, wall());
        }
        state.1
    }
}

fn follow(last: Millis, elapsed: Millis, wall: Millis) -> Millis {
    let straight = last.saturating_add(elapsed);
    let most = elapsed / 10;
    wall.clamp(straight.saturating_sub(most), straight.saturating_add(most)).max(last)
}

fn wall() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::follow;

    #[test]
    fn a_clock_that_was_set_is_followed_slowly() {
        assert_eq!(follow(1_000_000, 100, 1_000_100), 1_000_100);
        assert_eq!(follow(1_000_000, 100, 9_000_000), 1_000_110);
        assert_eq!(follow(1_000_000, 100, 0), 1_000_090);
        assert_eq!(follow(1_000_000, 5, 0), 1_000_005);
    }
}
