// Segment a CT with pfms, from Java 11 or later; there is nothing to compile or install:
//
//   java Pfms.java SERVER upload MODEL WEIGHTS
//   java Pfms.java SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
//   java Pfms.java SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there

import java.io.ByteArrayInputStream;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.SequenceInputStream;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

import static java.nio.charset.StandardCharsets.UTF_8;

public class Pfms {
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    public static void main(String[] args) throws Exception {
        Map<String, Integer> counts = Map.of("upload", 4, "infer", 5, "submit", 6);
        if (args.length < 2 || args.length != counts.getOrDefault(args[1], 0)) {
            System.err.println("usage: Pfms.java SERVER upload MODEL WEIGHTS\n"
                + "       Pfms.java SERVER infer  MODEL VOLUME OUTPUT\n"
                + "       Pfms.java SERVER submit MODEL VOLUME OUTPUT KEY");
            System.exit(2);
        }
        String command = args[1];
        String route = command.equals("upload") ? "modelpth" : "NIfTIinference";
        URI url = URI.create(args[0] + "/api/v1/spleenseg/" + route
            + "?modelID=" + URLEncoder.encode(args[2], UTF_8));
        String boundary = UUID.randomUUID().toString();
        HttpRequest.Builder request = HttpRequest.newBuilder(url)
            .header("Content-Type", "multipart/form-data; boundary=" + boundary)
            .POST(BodyPublishers.ofInputStream(() -> form(boundary, args[3])));
        if (command.equals("submit")) {
            // The same key again finds the same job, so a call that broke off can be made again.
            request.header("Prefer", "respond-async").header("Idempotency-Key", args[5]);
        }
        HttpResponse<byte[]> answer = call(request);
        if (command.equals("upload")) {
            System.out.println("stored with the checksum " + field(answer, "sha256"));
            return;
        }
        System.out.println("job " + answer.headers().firstValue("X-Pfms-Job").orElseThrow());
        if (answer.statusCode() == 202) {
            URI job = url.resolve(answer.headers().firstValue("Location").orElseThrow());
            while (List.of("queued", "running").contains(field(get(job), "state"))) {
                Thread.sleep(1000);
            }
            answer = get(URI.create(job + "/result"));
        }
        Files.write(Path.of(args[4]), answer.body());
    }

    static InputStream form(String boundary, String file) {
        String head = "--" + boundary + "\r\n"
            + "Content-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n"
            + "Content-Type: application/octet-stream\r\n\r\n";
        String tail = "\r\n--" + boundary + "--\r\n";
        try {
            return new SequenceInputStream(Collections.enumeration(List.of(
                new ByteArrayInputStream(head.getBytes(UTF_8)),
                new FileInputStream(file),
                new ByteArrayInputStream(tail.getBytes(UTF_8)))));
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    static HttpResponse<byte[]> get(URI url) throws Exception {
        return call(HttpRequest.newBuilder(url));
    }

    static HttpResponse<byte[]> call(HttpRequest.Builder request) throws Exception {
        HttpResponse<byte[]> answer = CLIENT.send(request.build(), BodyHandlers.ofByteArray());
        if (answer.statusCode() >= 400) {
            String type = answer.headers().firstValue("Content-Type").orElse("");
            System.err.println(type.equals("application/problem+json")
                ? field(answer, "detail") + " " + field(answer, "remedy")
                : "status " + answer.statusCode()); // for example from a proxy
            System.exit(1);
        }
        return answer;
    }

    // Java has no JSON parser of its own; in a project, use Jackson or Gson.
    static String field(HttpResponse<byte[]> answer, String name) {
        String pattern = "\"" + name + "\":\\s*\"((?:[^\"\\\\]|\\\\.)*)\"";
        Matcher match = Pattern.compile(pattern).matcher(new String(answer.body(), UTF_8));
        return match.find() ? match.group(1).replaceAll("\\\\(.)", "$1") : "";
    }
}
