//! Making topics.

use bluebox_core::log::{LogError, Topic};

use crate::fixture::{Fixture, append_all, plain};

pub async fn making_a_topic_twice_changes_nothing(fixture: impl Fixture) {
    let (one, two) = (fixture.client(), fixture.client());
    let topic = fixture.topic(&*one, 3).await;
    append_all(&*one, &topic.partition(2), ["kept".to_owned()]).await;
    two.create_topics(vec![plain(&topic, 7)]).await.unwrap();
    assert_eq!(two.partitions(&topic).await.unwrap(), Some(3));
    assert_eq!(two.bounds(&topic.partition(2)).await.unwrap().end.get(), 1);
    // Both at once.
    let other = Topic::new(&fixture.name("other"));
    let (a, b) = tokio::join!(one.create_topics(vec![plain(&other, 2)]), two.create_topics(vec![plain(&other, 2)]));
    a.unwrap();
    b.unwrap();
    assert_eq!(one.partitions(&other).await.unwrap(), Some(2));
}

pub async fn a_topic_that_is_not_there_has_no_partitions(fixture: impl Fixture) {
    let log = fixture.client();
    assert_eq!(log.partitions(&Topic::new(&fixture.name("nowhere"))).await.unwrap(), None);
}

pub async fn names_that_break_the_rule_are_refused(fixture: impl Fixture) {
    let log = fixture.client();
    for name in ["", ".", "..", "with space", "sla/sh", "ünicode", &"x".repeat(250)] {
        let refused = log.create_topics(vec![plain(&Topic::new(name), 1)]).await;
        assert!(matches!(refused, Err(LogError::Refused(_))), "{name:?}: {refused:?}");
    }
    let refused = log.create_topics(vec![plain(&Topic::new(&fixture.name("none")), 0)]).await;
    assert!(matches!(refused, Err(LogError::Refused(_))), "no partitions: {refused:?}");
}

pub async fn many_topics_at_once_can_be_used_at_once(fixture: impl Fixture) {
    let log = fixture.client();
    let topics: Vec<_> = (0..7).map(|_| Topic::new(&fixture.name("many"))).collect();
    log.create_topics(topics.iter().map(|t| plain(t, 8)).collect()).await.unwrap();
    for topic in &topics {
        append_all(&*log, &topic.partition(7), ["at once".to_owned()]).await;
    }
}
