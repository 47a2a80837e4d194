//! A member's watch service: any number of watches on one stream, each from a revision on.
//! It must not know what the watched keys mean.

use std::future::pending;

use etcd_client::proto::{
    PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService,
};
use tonic::{Request, Response, Status, Streaming};

use super::member::{Answers, Line, Member, until_hang_up};
use super::script::{Act, Answer, Point};

/// The watch service of a member.
pub(super) struct Watching(pub(super) Member);

/// One watch on a stream.
struct Watch {
    id: i64,
    key: Vec<u8>,
    end: Vec<u8>,
    /// The first revision whose events have not been sent yet.
    next: i64,
    act: Act,
}

#[tonic::async_trait]
impl PbWatchService for Watching {
    type WatchStream = Answers<PbWatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let Self(member) = self;
        member.open(request.metadata()).await?;
        let (line, response) = Line::open(&request);
        tokio::spawn(attend(member.clone(), request.into_inner(), line));
        Ok(response)
    }
}

async fn attend(
    member: Member,
    mut requests: Streaming<PbWatchRequest>,
    line: Line<PbWatchResponse>,
) {
    let mut changes = member.store.changes();
    let mut watches: Vec<Watch> = Vec::new();
    loop {
        changes.borrow_and_update();
        for watch in &mut watches {
            if let Some(answer) = response_for(&member, watch)
                && line.answers.send(Ok(answer)).await.is_err()
            {
                return;
            }
        }
        let request = tokio::select! {
            request = requests.message() => request,
            _ = changes.changed() => continue,
        };
        let Ok(Some(PbWatchRequest { request_union })) = request else {
            return;
        };
        let Some(PbWatchRequestUnion::CreateRequest(create)) = request_union else {
            continue;
        };
        let act = member.script.next(Point::Watch);
        match act {
            Act::Swallow => pending().await,
            Act::Close => return,
            Act::Cut => until_hang_up(line.hang_up.as_ref()).await,
            Act::Refuse(code, message) => {
                let _ = line.answers.send(Err(Status::new(code, message))).await;
                return;
            }
            Act::Hold => member.script.resumption().await,
            _ => {}
        }
        let now = member.store.revision();
        let next = if create.start_revision > 0 {
            create.start_revision
        } else {
            now + 1
        };
        let id = i64::try_from(watches.len()).expect("few watches");
        let mut created = PbWatchResponse {
            header: Some(member.header(now)),
            watch_id: id,
            created: true,
            ..PbWatchResponse::default()
        };
        if let Act::Lie(lie) = act {
            created.falsify(lie);
        }
        if line.answers.send(Ok(created)).await.is_err() {
            return;
        }
        if matches!(act, Act::Compacted) {
            let cancelled = PbWatchResponse {
                header: Some(member.header(now)),
                watch_id: id,
                canceled: true,
                compact_revision: next + 1,
                cancel_reason: "etcdserver: mvcc: required revision has been compacted".to_owned(),
                ..PbWatchResponse::default()
            };
            let _ = line.answers.send(Ok(cancelled)).await;
            continue;
        }
        watches.push(Watch {
            id,
            key: create.key,
            end: create.range_end,
            next,
            act,
        });
    }
}

/// The new events for a watch.
fn response_for(member: &Member, watch: &mut Watch) -> Option<PbWatchResponse> {
    let (now, mut events) = member.store.events(&watch.key, &watch.end, watch.next);
    watch.next = watch.next.max(now + 1);
    if matches!(watch.act, Act::Strange) {
        watch.act = Act::Honest;
        let keys = member.store.keys();
        events.insert(
            0,
            PbEvent {
                r#type: 7,
                kv: keys.into_iter().find(|kv| kv.key == watch.key),
                prev_kv: None,
            },
        );
    }
    (!events.is_empty()).then(|| PbWatchResponse {
        header: Some(member.header(now)),
        watch_id: watch.id,
        events,
        ..PbWatchResponse::default()
    })
}
