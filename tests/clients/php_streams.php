<?php
// PHP's own streams, without curl: SERVER upload|infer MODEL FILE [OUTPUT]

[, $server, $command, $model, $file] = $argv;
$route = $command === 'upload' ? 'modelpth' : 'NIfTIinference';
$context = stream_context_create(['http' => [
    'method' => 'POST',
    'header' => 'Content-Type: multipart/form-data; boundary=by-hand',
    'content' => "--by-hand\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n"
        . file_get_contents($file) . "\r\n--by-hand--\r\n",
    'ignore_errors' => true,
]]);
$url = "$server/api/v1/spleenseg/$route?modelID=$model";
$body = file_get_contents($url, false, $context);
if (!str_contains($http_response_header[0], ' 200 ')) {
    fwrite(STDERR, $body);
    exit(1);
}
if (isset($argv[5])) {
    file_put_contents($argv[5], $body);
}
