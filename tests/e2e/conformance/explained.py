"""Why a mesh answers otherwise than Triton, for each case in which it does."""

FAULTS_OF_A_BODY = tuple(
    f"HTTP infer: {name}"
    for name in (
        "no JSON", "JSON with more behind it", "a list", "null", "an empty object",
        "inputs that are an object", "an input without a name", "an input without a datatype",
        "an input without a shape", "an input whose data is null", "data that is a number",
        "a shape of text", "a shape that is a number", "a shape of fractions", "a negative size",
        "too few values", "too many values", "texts for numbers", "null among numbers",
        "an id that is a number", "parameters that are a list", "an output without a name",
        "an output that is text", "BOOL as numbers", "UINT8 of -1", "INT64 beyond",
        "INT64 of fractions", "INT64 of BOOL", "BYTES of numbers",
    )
)  # fmt: skip
BINARY_FAULTS = tuple(
    f"HTTP binary: {name}"
    for name in (
        "a negative size", "a size of text", "a size that is a fraction",
        "a header within the JSON",
    )
)  # fmt: skip

REASONS: dict[str, tuple[str, ...]] = {
    "A client's fault is 400 here, with a text that says what was wanted": (
        *FAULTS_OF_A_BODY, *BINARY_FAULTS, "http index of no JSON", "http load of no JSON",
        "http load with an unknown parameter", "http generate of no JSON",
        "http generate of an empty body",
    ),
    "Elements that are no UTF-8 are refused: ONNX Runtime's strings are text": (
        "infer: BYTES that are no text", "http bytes that are no text as JSON",
    ),
    "Zero classes are refused, as over gRPC": ("HTTP infer: no classes",),
    "A count of classes that is text is the client's fault": ("HTTP infer: classes of text",),
    "A size that is left open is one, for the one text or file that a body is": (
        "HTTP raw binary: BYTES", "HTTP raw binary: no bytes",
    ),
    "A name is no path: nothing outside of the repository is loaded": (
        "load of a path beside the repository",
    ),
    "A pipeline without ops is told as the model that it is, an ensemble of one step there": (
        "config names a backend or platform", "ModelConfig: pipeline of a model",
        "platform of models tells ensembles from others",
    ),
    "Sizes of batches are in the histogram `mesh_infer_batch_rows`": (
        "statistics tell of batch sizes",
    ),
    "A version's number is compared as text, and one that is none is not found": (
        "infer: version that is no number", "infer: version -1", "infer: version 01",
        "ModelReady: version that is no number", "ModelMetadata: version that is no number",
        "ModelConfig: version that is no number", "GET /v2/models/spare/versions/abc/ready",
    ),
    "What is not there is NOT_FOUND, whatever was asked of it": (
        "statistics of an unknown model", "statistics of an unknown version",
        "statistics of an unloaded model", "infer of a version of an unloaded model",
        "GET /v2/models/nobody/stats", "GET /v2/models/versions/versions/2/stats",
        "load of an unknown model", "http load of an unknown model", "unload of an unknown model",
        "http unload of an unknown model",
    ),
    "Sequences are not known here, and Triton's ensembles tell of none": (
        "infer: ensemble", "infer: pipeline of a model", "HTTP infer: ensemble",
        "HTTP infer: pipeline of a model",
    ),
    "Contents that nobody takes are refused": ("infer: more raw contents than inputs",),
    "Values beyond the type are refused and not cut": (
        "infer: typed contents beyond the type", "HTTP infer: UINT8 of 256",
        "HTTP infer: INT8 of 300", "HTTP infer: INT32 beyond", "HTTP infer: a number beyond FP32",
    ),
    "JSON has neither NaN nor infinity; such numbers come and go in binary": (
        "HTTP infer: NaN", "http numbers that are not finite as JSON",
    ),
    "Outputs come in the order in which they were asked for": (
        "infer: outputs in another order", "HTTP several kinds: outputs in another order",
    ),
    "A number, or yes, that is written as text is taken for what it says": (
        "infer: priority as text", "infer: timeout as text", "HTTP infer: priority as text",
        "HTTP infer: timeout as text", "HTTP infer: binary_data that is text",
        "HTTP infer: binary_data_output that is text",
    ),
    "A limit that has passed already cannot be kept": ("infer: negative timeout",),
    "Parameters that begin with `triton_` and are not known are left out": (
        "infer: reserved parameter", "HTTP infer: a reserved parameter",
    ),
    "FP16 has classes, too": ("infer: classes of FP16",),
    "What is no number is the last of the classes": ("infer: classes that are no number",),
    "Shared memory that cannot be opened is the client's fault": (
        "shared memory that is not there",
    ),
    "A name that is taken is the client's fault, for which there is one status here": (
        "shared memory in and out",
    ),
    "Settings that are not known are refused, so that a misspelt one is seen": (
        "unknown trace setting", "unknown log setting",
    ),
    "Traces are set for all models alike, and a model's name is not looked at": (
        "trace settings of an unknown model",
    ),
    "Sequences are not offered, and so not told of": ("server metadata extensions",),
    "A generation is answered as a whole where no stream is asked for": (
        "infer: model that generates", "HTTP infer: model that generates",
    ),
    "The body is JSON with `live` or `ready`, which KServe's client reads": ("http ready body",),
    "The model of a pipeline has a line of its own": ("index of all models",),
    "All versions that serve are told, whichever was asked for": (
        "ModelMetadata: one version", "http metadata of a version",
    ),
    "Fields of Triton's own memory and scheduler are told as they are in the file": (
        "config fills in optimization", "config fills in preferred batch sizes",
        "config of an ensemble tells whether it is decoupled",
    ),
    "Groups of instances that the file names are told as they are there": (
        "config names groups of instances",
    ),
    "A pipeline with an op before its model takes any number of texts": (
        "metadata of a pipeline that generates",
    ),
    "As the health protocol says: an unknown name is NOT_FOUND, and health can be watched": (
        "grpc health check of an unknown name", "grpc health watch",
    ),
    "Bytes that are no message are a client's fault": ("message that is none",),
    "A name in a path may be escaped, as in any URL": ("HTTP infer: escaped name",),
    "A redirect leads to the path without the slash": ("GET /v2/", "GET /v2/models/spare/"),
    "The status says it all": (
        "GET /v2/models/spare/versions/2/ready", "GET /v2/models/nobody/ready",
    ),
    "An encoding that is not known is refused as any other fault of a request": (
        "http request in another encoding",
    ),
    "gzip is preferred, and names of encodings have no case": ("http answer as accepted",),
    "Generation over HTTP is for pipelines that generate, with `text_input` and `text_output`": (
        "http generate for a model of text", "http generate of a text",
        "http generate stream of a text",
    ),
    "A timeout is honoured also where the policy has none, if it may be overridden": (
        "queue timeout where the policy has none",
    ),
    "Only batches that were run to their end are counted": (
        "statistics count failures of the model",
    ),
    "There is one repository, and its name is not looked at": ("index of an unknown repository",),
    "The reason is told, empty where there is none": ("http index has fields",),
    "Fields that are not known are refused, so that a misspelt one is seen": (
        "http index with an unknown field", "http load with unknown fields",
    ),
    "The server is ready while any pipeline is answered": ("server is ready without one model",),
    "A load without a config goes back to that of the repository": (
        "load with another config", "http load with another config",
    ),
    "A config that cannot be used is told as the client's fault, or that it does not fit": (
        "load with a config that is none", "load with a config that cannot be served",
        "load with a file and no config", "load without a name",
    ),
    "Models that came with a request are in the index": ("load of a model from a request",),
    "The index tells of the failure beside what serves on": (
        "load of a model with a broken config",
    ),
    "Triton keeps parts that were loaded by their own names, as all are here": (
        "unload of an ensemble with its parts",
    ),
    "A pipeline stays when its model goes, and says what is missing": (
        "unload of the model of a pipeline",
    ),
}  # fmt: skip
"""Names of cases by the reason; with `BUG:` it is a fault of ours."""

EXPLAINED = {name: reason for reason, names in REASONS.items() for name in names}
