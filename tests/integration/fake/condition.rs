//! The status that a fake member reports.
//! It must not know the client.

use std::future::pending;

use etcd_client::proto::{PbStatusRequest, PbStatusResponse};
use tonic::codegen::BoxFuture;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use super::member::Member;
use super::script::{Act, Point};

/// The one method of the Maintenance service that dlock calls.
#[derive(Clone)]
pub(super) struct Condition(pub(super) Member);

impl UnaryService<PbStatusRequest> for Condition {
    type Response = PbStatusResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<PbStatusRequest>) -> Self::Future {
        let Self(member) = self.clone();
        Box::pin(async move {
            match member.script.next(Point::Status) {
                Act::Swallow => pending().await,
                Act::Refuse(code, message) => return Err(Status::new(code, message)),
                _ => member.admit(request.metadata())?,
            }
            Ok(Response::new(PbStatusResponse {
                header: Some(member.header(member.store.revision())),
                version: member.script.version().to_owned(),
                leader: member.identity.member,
                raft_term: member.identity.term,
                ..PbStatusResponse::default()
            }))
        })
    }
}
