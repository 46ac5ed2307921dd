"""A form by Python's email package: SERVER upload|infer MODEL FILE [OUTPUT].

Sent as the package writes it: the message's own headers come before the first boundary, and long
headers are folded. The package would rewrite line ends within a binary file, so the file takes the
place of a word after that.
"""

import json
import sys
import uuid
from email.encoders import encode_noop
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

server, command, model, file, *output = sys.argv[1:]
word = uuid.uuid4().hex.encode()
part = MIMEApplication(word, _encoder=encode_noop)
part.add_header("Content-Disposition", "form-data", name="file", filename="a long name " * 9)
message = MIMEMultipart("form-data")
message.attach(part)
form = message.as_bytes(policy=message.policy.clone(linesep="\r\n"))
assert form.startswith(b"Content-Type: multipart/form-data;\r\n boundary=")

route = "modelpth" if command == "upload" else "NIfTIinference"
request = Request(
    f"{server}/api/v1/spleenseg/{route}?modelID={model}",
    form.replace(word, Path(file).read_bytes()),
    {"Content-Type": message["Content-Type"]},
)
try:
    answer = urlopen(request).read()
except HTTPError as error:
    sys.exit(json.dumps(json.load(error)))
if output:
    Path(output[0]).write_bytes(answer)
