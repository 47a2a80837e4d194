//! One member as gRPC services: each request goes to the honest store, each answer through the script.
//! It must not know connections, nor which test runs.

use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_client::proto::{
    PbAuthenticateRequest, PbAuthenticateResponse, PbCompactionRequest, PbCompactionResponse,
    PbDeleteRequest, PbDeleteResponse, PbKvServer, PbKvService, PbLeaseGrantRequest,
    PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbLeaseLeasesRequest,
    PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseServer,
    PbLeaseService, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbResponseHeader,
    PbTxnOpRequest, PbTxnRequest, PbTxnResponse, PbWatchServer,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Body, BoxFuture, Bytes, Service, StdError, http, tokio_stream};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use super::condition::Condition;
use super::script::{Act, Answer, Lie, Point, Script};
use super::store::Store;
use super::watching::Watching;

/// The contents of every header of a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) cluster: u64,
    pub(super) member: u64,
    pub(super) term: u64,
}

impl Identity {
    pub(super) const FIRST: Self = Self {
        cluster: 0xc1,
        member: 0x11,
        term: 7,
    };
}

/// The first lease id that a member chooses itself, if the client has chosen none.
const CHOSEN: i64 = 0x7000_0000;

/// A member of a cluster; clones are the same member.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) store: Arc<Store>,
    pub(super) script: Arc<Script>,
    pub(super) identity: Identity,
    /// The password of every user, if there is authentication at all.
    pub(super) password: Option<&'static str>,
    /// The number in the last token.
    pub(super) logins: Arc<AtomicU64>,
}

/// Closes the connection that a request came over.
#[derive(Clone, Default)]
pub(super) struct HangUp(pub(super) Arc<Notify>);

pub(super) type Answers<T> = ReceiverStream<Result<T, Status>>;

/// The server's half of a stream, which may be closed with its connection.
pub(super) struct Line<T> {
    pub(super) hang_up: Option<HangUp>,
    pub(super) answers: mpsc::Sender<Result<T, Status>>,
}

impl<T> Line<T> {
    pub(super) fn open<R>(request: &Request<R>) -> (Self, Response<Answers<T>>) {
        let (answers, stream) = mpsc::channel(64);
        let line = Self {
            hang_up: request.extensions().get().cloned(),
            answers,
        };
        (line, Response::new(ReceiverStream::new(stream)))
    }
}

pub(super) async fn until_hang_up<T>(hang_up: Option<&HangUp>) -> T {
    hang_up.expect("every request has one").0.notify_one();
    pending().await
}

impl Member {
    pub(super) fn header(&self, revision: i64) -> PbResponseHeader {
        PbResponseHeader {
            cluster_id: self.identity.cluster,
            member_id: self.identity.member,
            revision,
            raft_term: self.identity.term,
        }
    }

    pub(super) fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if self.password.is_none() {
            return Ok(());
        }
        let Some(token) = metadata.get("token") else {
            return Err(Status::invalid_argument("etcdserver: user name is empty"));
        };
        let number = token.to_str().ok().and_then(|it| it.parse().ok());
        match number {
            Some(1..) if number <= Some(self.logins.load(Ordering::SeqCst)) => Ok(()),
            _ => Err(Status::unauthenticated("etcdserver: invalid auth token")),
        }
    }

    /// Opens a stream, or refuses it.
    pub(super) async fn open(&self, metadata: &MetadataMap) -> Result<(), Status> {
        match self.script.next(Point::Open) {
            Act::Swallow => pending().await,
            Act::Refuse(code, message) => Err(Status::new(code, message)),
            _ => self.admit(metadata),
        }
    }

    /// Executes one request as the script says.
    async fn serve<R: Send, T: Answer + Send>(
        &self,
        point: Point,
        request: Request<R>,
        apply: impl FnOnce(&Store, R) -> Result<(i64, T), Status> + Send,
    ) -> Result<Response<T>, Status> {
        let act = self.script.next(point);
        match act {
            Act::Swallow => pending().await,
            Act::Refuse(code, message) => return Err(Status::new(code, message)),
            _ => self.admit(request.metadata())?,
        }
        let hang_up: Option<HangUp> = request.extensions().get().cloned();
        let (revision, mut answer) = apply(&self.store, request.into_inner())?;
        *answer.header() = Some(self.header(revision));
        match act {
            Act::Lie(what) => answer.falsify(what),
            Act::Hold => self.script.resumption().await,
            Act::Cut => until_hang_up(hang_up.as_ref()).await,
            Act::RefuseDone(after, code, message) => {
                sleep(after).await;
                return Err(Status::new(code, message));
            }
            _ => {}
        }
        Ok(Response::new(answer))
    }

    async fn keep_alive(
        self,
        mut questions: Streaming<PbLeaseKeepAliveRequest>,
        line: Line<PbLeaseKeepAliveResponse>,
    ) {
        while let Ok(Some(PbLeaseKeepAliveRequest { id })) = questions.message().await {
            let act = self.script.next(Point::KeepAlive);
            let (revision, ttl) = match act {
                Act::Swallow => pending().await,
                Act::Close => return,
                Act::Refuse(code, message) => {
                    let _ = line.answers.send(Err(Status::new(code, message))).await;
                    return;
                }
                Act::Lie(Lie::Ttl(1..)) => self.store.keep_alive(id),
                Act::Pretend | Act::Lie(_) => self.store.ttl(id),
                _ => self.store.keep_alive(id),
            };
            let mut answer = PbLeaseKeepAliveResponse {
                header: Some(self.header(revision)),
                id,
                ttl,
            };
            match act {
                Act::Lie(what) => answer.falsify(what),
                Act::Hold => self.script.resumption().await,
                Act::Cut => until_hang_up(line.hang_up.as_ref()).await,
                _ => {}
            }
            let _ = line.answers.send(Ok(answer)).await;
        }
    }
}

/// The kind of a transaction, from dlock's view.
fn point(txn: &PbTxnRequest) -> Point {
    let has = |wanted: fn(&PbTxnOpRequest) -> bool| {
        let mut requests = txn.success.iter().filter_map(|op| op.request.as_ref());
        requests.any(wanted)
    };
    // A release also puts its record.
    if has(|op| matches!(op, PbTxnOpRequest::RequestDeleteRange(_))) {
        Point::Release
    } else if has(|op| matches!(op, PbTxnOpRequest::RequestPut(_))) {
        Point::Place
    } else if has(
        |op| matches!(op, PbTxnOpRequest::RequestRange(range) if range.max_create_revision > 0),
    ) {
        Point::Look
    } else {
        Point::Read
    }
}

type Parts<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PbKvService for Member {
    async fn range(
        &self,
        request: Request<PbRangeRequest>,
    ) -> Result<Response<PbRangeResponse>, Status> {
        self.admit(request.metadata())?;
        let (revision, mut answer) = self.store.range(request.get_ref());
        answer.header = Some(self.header(revision));
        Ok(Response::new(answer))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        self.admit(request.metadata())?;
        let (revision, mut answer) = self.store.put(request.get_ref())?;
        answer.header = Some(self.header(revision));
        Ok(Response::new(answer))
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        self.admit(request.metadata())?;
        let (revision, mut answer) = self.store.delete(request.get_ref());
        answer.header = Some(self.header(revision));
        Ok(Response::new(answer))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        self.serve(point(request.get_ref()), request, |store, request| {
            store.txn(&request)
        })
        .await
    }

    async fn compact(
        &self,
        _: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }

    type RangeStreamStream = Parts<PbRangeStreamResponse>;

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }
}

#[tonic::async_trait]
impl PbLeaseService for Member {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        self.serve(
            Point::Grant,
            request,
            |store, PbLeaseGrantRequest { ttl, id }| {
                // With 0 the server chooses.
                let id = if id == 0 {
                    CHOSEN + store.revision()
                } else {
                    id
                };
                let seconds = ttl.try_into().map_err(|_| Status::out_of_range("TTL"))?;
                let revision = store.grant(id, Some(Duration::from_secs(seconds)))?;
                let granted = PbLeaseGrantResponse {
                    id,
                    ttl,
                    ..PbLeaseGrantResponse::default()
                };
                Ok((revision, granted))
            },
        )
        .await
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.serve(
            Point::Revoke,
            request,
            |store, PbLeaseRevokeRequest { id }| {
                Ok((store.revoke(id)?, PbLeaseRevokeResponse::default()))
            },
        )
        .await
    }

    type LeaseKeepAliveStream = Answers<PbLeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.open(request.metadata()).await?;
        let (line, response) = Line::open(&request);
        tokio::spawn(self.clone().keep_alive(request.into_inner(), line));
        Ok(response)
    }

    async fn lease_time_to_live(
        &self,
        _: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        if let Act::Swallow = self.script.next(Point::TimeLeft) {
            pending::<()>().await;
        }
        Err(Status::unimplemented("nobody asks for it"))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }
}

/// The one method of the Auth service that dlock calls; etcd-client does not export all the types that its trait needs.
#[derive(Clone)]
struct Login(Member);

impl UnaryService<PbAuthenticateRequest> for Login {
    type Response = PbAuthenticateResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<PbAuthenticateRequest>) -> Self::Future {
        let Self(member) = self.clone();
        Box::pin(async move {
            match (member.script.next(Point::Login), member.password) {
                (Act::Swallow, _) => pending().await,
                (Act::Refuse(code, message), _) => Err(Status::new(code, message)),
                (_, None) => Err(Status::failed_precondition(
                    "etcdserver: authentication is not enabled",
                )),
                (_, Some(password)) if request.get_ref().password == password => {
                    let login = member.logins.fetch_add(1, Ordering::SeqCst) + 1;
                    Ok(Response::new(PbAuthenticateResponse {
                        header: Some(member.header(member.store.revision())),
                        token: login.to_string(),
                    }))
                }
                (_, Some(_)) => Err(Status::invalid_argument(
                    "etcdserver: authentication failed, invalid user ID or password",
                )),
            }
        })
    }
}

/// All services of a member, as one connection sees them.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) member: Member,
    pub(super) hang_up: HangUp,
}

impl<B> Service<http::Request<B>> for Services
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.hang_up.clone());
        let request = request.map(tonic::body::Body::new);
        let member = self.member.clone();
        let path = request.uri().path().to_owned();
        match path.rsplit_once('/') {
            Some(("/etcdserverpb.KV", _)) => PbKvServer::new(member).call(request),
            Some(("/etcdserverpb.Lease", _)) => PbLeaseServer::new(member).call(request),
            Some(("/etcdserverpb.Watch", _)) => PbWatchServer::new(Watching(member)).call(request),
            Some(("/etcdserverpb.Maintenance", "Status")) => Box::pin(async move {
                let codec = tonic_prost::ProstCodec::default();
                Ok(Grpc::new(codec).unary(Condition(member), request).await)
            }),
            Some(("/etcdserverpb.Auth", "Authenticate")) => Box::pin(async move {
                let codec = tonic_prost::ProstCodec::default();
                Ok(Grpc::new(codec).unary(Login(member), request).await)
            }),
            _ => Box::pin(async { Ok(Status::unimplemented("not in the fake").into_http()) }),
        }
    }
}
