//! Whether a program still does what its recording says. Pure.

/// Needs looked back on.
const WINDOW: usize = 64;
/// Fewer needs than this say nothing: a start always has a few of its own.
const ENOUGH: usize = 24;

/// The last needs of a start: each the first need of some bytes.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// Whether each was a miss outside the recording; a ring.
    strays: Vec<bool>,
    next: usize,
}

impl Course {
    /// Bytes were needed for the first time: whether somebody had to wait for them, and whether the recording has some of them.
    pub(super) fn need(&mut self, is_miss: bool, is_recorded: bool) {
        let stray = is_miss && !is_recorded;
        if self.strays.len() < WINDOW {
            self.strays.push(stray);
        } else if let Some(oldest) = self.strays.get_mut(self.next) {
            *oldest = stray;
        }
        self.next = (self.next + 1) % WINDOW;
    }

    /// Whether more than half of the last needs were misses that the recording knows nothing of: what is replayed then delays the bytes that are
    /// needed, and is needed itself by nobody.
    pub(super) fn has_left(&self) -> bool {
        let strays = self.strays.iter().filter(|stray| **stray).count();
        self.strays.len() >= ENOUGH && strays * 2 > self.strays.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(needs: impl IntoIterator<Item = (bool, bool)>) -> bool {
        let mut course = Course::default();
        needs.into_iter().for_each(|(miss, recorded)| course.need(miss, recorded));
        course.has_left()
    }

    #[test]
    fn a_program_has_left_its_recording_when_most_of_its_late_needs_are_misses_outside() {
        let (stray, hit, recorded) = ((true, false), (false, false), (true, true));
        assert!(!after([stray; ENOUGH - 1]), "too few to say");
        assert!(after([stray; ENOUGH]));
        assert!(!after([hit; WINDOW]), "what is here delays nobody");
        assert!(!after([recorded; WINDOW]), "misses that the replay has not reached yet");
        assert!(!after([stray, hit].into_iter().cycle().take(WINDOW)), "half is not most");
        assert!(after([hit; WINDOW].into_iter().chain([stray; WINDOW / 2 + 1])), "old needs are forgotten");
        assert!(!after([stray; WINDOW].into_iter().chain([hit; WINDOW])), "and it may come back");
    }
}
