<?php
// Segment a CT with pfms, from PHP 8 with its curl extension:
//
//   php pfms.php SERVER upload MODEL WEIGHTS
//   php pfms.php SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
//   php pfms.php SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there

declare(strict_types=1);

function call(string $url, array $options = []): array
{
    $headers = [];
    $curl = curl_init($url);
    curl_setopt_array($curl, $options + [
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_HEADERFUNCTION => function ($curl, string $line) use (&$headers): int {
            [$name, $value] = explode(':', $line, 2) + [1 => ''];
            $headers[strtolower($name)] = trim($value);
            return strlen($line);
        },
    ]);
    $body = curl_exec($curl);
    if ($body === false) {
        fail(curl_error($curl));
    }
    $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
    if ($status >= 400) {
        if (($headers['content-type'] ?? '') !== 'application/problem+json') {
            fail("status $status"); // for example from a proxy
        }
        $problem = json_decode($body, true);
        fail("$problem[detail] $problem[remedy]");
    }
    return [$status, $headers, $body];
}

function fail(string $message): never
{
    fwrite(STDERR, "$message\n");
    exit(1);
}

if ($argc !== (['upload' => 5, 'infer' => 6, 'submit' => 7][$argv[2] ?? ''] ?? 0)) {
    fwrite(STDERR, "usage: pfms.php SERVER upload MODEL WEIGHTS\n");
    fwrite(STDERR, "       pfms.php SERVER infer  MODEL VOLUME OUTPUT\n");
    fwrite(STDERR, "       pfms.php SERVER submit MODEL VOLUME OUTPUT KEY\n");
    exit(2);
}
[, $server, $command, $model, $file] = $argv;
$route = $command === 'upload' ? 'modelpth' : 'NIfTIinference';
$url = "$server/api/v1/spleenseg/$route?" . http_build_query(['modelID' => $model]);
$options = [CURLOPT_POSTFIELDS => ['file' => new CURLFile($file)]];
if ($command === 'submit') {
    // The same key again finds the same job, so a call that broke off can be made again.
    $options[CURLOPT_HTTPHEADER] = ['Prefer: respond-async', "Idempotency-Key: $argv[6]"];
}
[$status, $headers, $body] = call($url, $options);
if ($command === 'upload') {
    echo 'stored with the checksum ', json_decode($body)->sha256, "\n";
    exit;
}
echo "job {$headers['x-pfms-job']}\n";
if ($status === 202) {
    // Location is a path from the root; it includes the path of SERVER, if there is one.
    $job = preg_replace('#^(\w+://[^/]+).*#', '$1', $server) . $headers['location'];
    while (in_array(json_decode(call($job)[2])->state, ['queued', 'running'], true)) {
        sleep(1);
    }
    $body = call("$job/result")[2];
}
file_put_contents($argv[5], $body);
