//! Who is asked for what, in which order, and what is said of those that do not answer.

use super::*;
use weft_config::purge::Kind;

const NOW: u64 = 1_800_000_000;

struct Play {
    purges: Purges,
    clock: Instant,
}

fn instance(workload: &str) -> Instance {
    Instance { namespace: "shop".into(), workload: workload.into(), id: "1".into() }
}

impl Play {
    fn new() -> Self {
        Self { purges: Purges::new(Log::new()), clock: Instant::now() }
    }

    fn connect(&mut self, id: StreamId, workload: &str, last: (&str, u64)) -> (usize, bool) {
        self.purges.connect(id, &instance(workload), last, Arc::new(Notify::new()), NOW)
    }

    /// A sidecar that knows of all purges so far, and has read what it was told first.
    fn join(&mut self, id: StreamId, workload: &str) -> (String, u64) {
        self.connect(id, workload, ("", 0));
        let mut last = (String::new(), 0);
        while let Some(purge) = self.read(id) {
            last = (purge.log.clone(), purge.number);
        }
        last
    }

    fn begin(&mut self) -> u64 {
        let purge = Purge::read(Kind::Tag, "t", "", false, "").expect("is one");
        let (log, number) = self.purges.prepare(&purge, NOW).expect("not too many");
        self.purges.begin(log, number);
        number
    }

    fn read(&mut self, id: StreamId) -> Option<wire::Purge> {
        match self.purges.next(id)? {
            Message::Purge(purge) => Some(purge),
            other => panic!("no purge: {other:?}"),
        }
    }

    /// Reads one purge and says that it was for so many answers. Gives its number and round.
    fn obey(&mut self, id: StreamId, answers: u64) -> (u64, u32) {
        let purge = self.read(id).expect("a purge");
        self.answer(id, &purge, answers, "");
        (purge.number, purge.round)
    }

    fn answer(&mut self, id: StreamId, purge: &wire::Purge, answers: u64, failed: &str) {
        let purged = wire::Purged {
            log: purge.log.clone(),
            number: purge.number,
            round: purge.round,
            answers,
            failed: failed.to_owned(),
        };
        self.purges.answered(id, &purged);
    }

    fn finish(&mut self, number: u64) -> Vec<(String, PurgeState, u64)> {
        let sidecars = self.purges.finish(number).into_iter();
        sidecars.map(|sidecar| (sidecar.workload, sidecar.state, sidecar.answers)).collect()
    }
}

#[test]
fn a_round_begins_when_all_have_carried_out_the_one_before() {
    let mut play = Play::new();
    play.join(1, "cart");
    play.join(2, "product");
    let number = play.begin();
    for round in 0..ROUNDS {
        assert!(!play.purges.is_through(number));
        assert_eq!(play.obey(1, 3), (number, round));
        assert!(play.read(1).is_none(), "the other is not there yet");
        assert_eq!(play.obey(2, 4), (number, round));
    }
    assert!(play.purges.is_through(number));
    assert!(play.read(1).is_none() && play.read(2).is_none());
    let done = PurgeState::Acknowledged;
    // Only the first round counts.
    assert_eq!(play.finish(number), [("cart".into(), done, 3), ("product".into(), done, 4)]);
}

#[test]
fn who_does_not_answer_is_late_and_who_cannot_says_why() {
    let mut play = Play::new();
    for (id, workload) in [(1, "cart"), (2, "old"), (3, "slow"), (4, "gone")] {
        play.join(id, workload);
    }
    let number = play.begin();
    play.obey(1, 1);
    let purge = play.read(2).expect("a purge");
    play.answer(2, &purge, 0, "what\n is that?");
    play.purges.disconnect(4, true, play.clock);
    assert!(!play.purges.is_through(number));
    let sidecars = play.purges.finish(number);
    let states: Vec<_> = sidecars.iter().map(|s| (s.workload.as_str(), s.state, s.why.as_str())).collect();
    assert_eq!(
        states,
        [
            ("cart", PurgeState::Late, ""),
            ("gone", PurgeState::Lost, ""),
            ("old", PurgeState::Failed, "what is that?"),
            ("slow", PurgeState::Late, ""),
        ]
    );
    assert_eq!(sidecars[0].answers, 1, "what is known is told");
}

#[test]
fn who_fails_holds_up_nobody() {
    let mut play = Play::new();
    play.join(1, "cart");
    play.join(2, "old");
    let number = play.begin();
    play.obey(1, 1);
    let purge = play.read(2).expect("a purge");
    play.answer(2, &purge, 0, "no");
    for round in 1..ROUNDS {
        assert_eq!(play.obey(1, 0), (number, round));
    }
    assert!(play.purges.is_through(number));
    let failed = ("old".to_owned(), PurgeState::Failed, 0);
    assert_eq!(play.finish(number), [("cart".to_owned(), PurgeState::Acknowledged, 1), failed]);
}

#[test]
fn who_loses_its_connection_and_comes_back_in_time_is_waited_for() {
    let mut play = Play::new();
    let last = play.join(1, "cart");
    play.join(2, "product");
    let number = play.begin();
    play.obey(2, 2);
    // Sent, and lost on the way.
    play.read(1);
    play.purges.disconnect(1, true, play.clock);
    assert!(play.read(2).is_none());
    assert_eq!(play.connect(3, "cart", (&last.0, last.1)), (1, false));
    assert_eq!(play.obey(3, 5), (number, 0));
    for round in 1..ROUNDS {
        assert_eq!(play.obey(2, 0), (number, round));
        assert_eq!(play.obey(3, 0), (number, round));
    }
    assert!(play.purges.is_through(number));
    let done = PurgeState::Acknowledged;
    assert_eq!(play.finish(number), [("cart".into(), done, 5), ("product".into(), done, 2)]);
}

#[test]
fn who_comes_in_between_takes_part() {
    let mut play = Play::new();
    play.join(1, "cart");
    let number = play.begin();
    play.obey(1, 0);
    // In the second round now.
    play.connect(2, "new", ("", 0));
    assert_eq!(play.obey(1, 0), (number, 1));
    assert!(play.read(1).is_none());
    assert_eq!(play.obey(2, 0), (number, 0));
    assert_eq!(play.obey(2, 0), (number, 1));
    for round in 2..ROUNDS {
        assert_eq!(play.obey(1, 0), (number, round));
        assert_eq!(play.obey(2, 0), (number, round));
    }
    assert!(play.purges.is_through(number));
    assert_eq!(play.finish(number).len(), 2);
    // One that has carried it out already, but for the rounds that are left.
    let number = play.begin();
    let first = play.read(1).expect("a purge");
    play.answer(1, &first, 0, "");
    play.purges.disconnect(1, true, play.clock);
    play.connect(3, "cart", (&first.log, first.number));
    let marker = play.read(3).expect("where the list is");
    assert_eq!((marker.number, &marker.what), (number, &Some(What::Nothing(true))));
    play.answer(3, &marker, 0, "");
    play.obey(2, 0);
    assert_eq!(play.obey(3, 0), (number, 1));
}

#[test]
fn a_second_stream_of_a_process_takes_the_place_of_the_first() {
    let mut play = Play::new();
    let last = play.join(1, "cart");
    let number = play.begin();
    play.connect(2, "cart", (&last.0, last.1));
    play.purges.disconnect(1, true, play.clock);
    for round in 0..ROUNDS {
        assert_eq!(play.obey(2, 1), (number, round));
    }
    assert_eq!(play.finish(number), [("cart".to_owned(), PurgeState::Acknowledged, 1)]);
    assert!(play.purges.away(&[], play.clock).is_empty());
}

#[test]
fn who_was_lost_lately_is_told_and_who_said_goodbye_is_not() {
    let mut play = Play::new();
    for (id, workload) in [(1, "cart"), (2, "product"), (3, "user")] {
        play.join(id, workload);
    }
    play.purges.disconnect(1, true, play.clock);
    play.purges.disconnect(2, false, play.clock);
    let later = play.clock + Duration::from_secs(90);
    let away = |purges: &Purges, expected: &[Instance], at| -> Vec<_> {
        purges.away(expected, at).into_iter().map(|away| (away.workload, away.seconds)).collect()
    };
    assert_eq!(away(&play.purges, &[], later), [("cart".to_owned(), 90)]);
    // After a restart of the control plane those are missing that served before it.
    let expected = [instance("user"), instance("checkout")];
    let both = [("cart".to_owned(), 90), ("checkout".to_owned(), 0)];
    assert_eq!(away(&play.purges, &expected, later), both);
    assert!(away(&play.purges, &[], play.clock + AWAY_FOR).is_empty());
    let again = Instance { id: "2".into(), ..instance("cart") };
    play.purges.connect(4, &again, ("", 0), Arc::new(Notify::new()), NOW);
    assert!(away(&play.purges, &[], later).is_empty());
}

#[test]
fn nobody_makes_the_control_plane_keep_too_much() {
    let mut play = Play::new();
    play.join(1, "deaf");
    let mut numbers = Vec::new();
    while play.purges.runs.len() < MOST_AT_ONCE {
        numbers.push(play.begin());
    }
    let purge = Purge::read(Kind::All, "", "", false, "").expect("is one");
    assert!(play.purges.prepare(&purge, NOW).is_none());
    for number in numbers {
        play.finish(number);
    }
    for _ in 0..2 * MOST_WAITING {
        let number = play.begin();
        play.finish(number);
    }
    let line = &play.purges.lines[&1];
    assert!(line.waiting.len() <= MOST_WAITING);
    let Some(Message::Purge(first)) = line.waiting.front() else { panic!("a purge") };
    assert_eq!(first.what, Some(What::All(true)), "it stands for all that are no longer there");
}

#[test]
fn answers_to_nothing_change_nothing() {
    let mut play = Play::new();
    play.join(1, "cart");
    let number = play.begin();
    let purge = play.read(1).expect("a purge");
    play.answer(1, &wire::Purge { round: 3, ..purge.clone() }, 7, "");
    play.answer(1, &wire::Purge { number: 99, ..purge.clone() }, 7, "");
    play.answer(9, &purge, 7, "");
    assert_eq!(play.finish(number), [("cart".to_owned(), PurgeState::Late, 0)]);
    play.answer(1, &purge, 7, "");
}

#[test]
fn a_survey_ends_when_all_have_answered_or_gone() {
    let mut play = Play::new();
    for (id, workload) in [(1, "cart"), (2, "product"), (3, "user")] {
        play.join(id, workload);
    }
    let (number, _) = play.purges.survey().expect("not too many");
    for id in [1, 2] {
        let Some(Message::CacheReportRequest(request)) = play.purges.next(id) else { panic!("a question") };
        assert!(!play.purges.is_surveyed(number));
        let report = wire::CacheReport { number: request.number, ..wire::CacheReport::default() };
        play.purges.reported(id, report.clone());
        play.purges.reported(id, report);
    }
    play.purges.disconnect(3, true, play.clock);
    assert!(play.purges.is_surveyed(number));
    let found = play.purges.end_survey(number);
    assert_eq!((found.reports.len(), found.asked.len()), (2, 3));
}
