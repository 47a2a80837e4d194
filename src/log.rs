//! stub
pub(crate) use tracing::Level;
pub(crate) struct Form {
    pub(crate) level: Level,
    pub(crate) json: bool,
}
