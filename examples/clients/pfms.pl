# Segment a CT with pfms, from Perl with LWP (libwww-perl):
#
#   perl pfms.pl SERVER upload MODEL WEIGHTS
#   perl pfms.pl SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
#   perl pfms.pl SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there

use strict;
use warnings;

use HTTP::Request::Common qw(GET POST);
use JSON::PP qw(decode_json);
use LWP::UserAgent;
use URI;

my %counts = (upload => 4, infer => 5, submit => 6);
if (@ARGV != ($counts{$ARGV[1] // ''} // -1)) {
    print STDERR "usage: pfms.pl SERVER upload MODEL WEIGHTS\n",
                 "       pfms.pl SERVER infer  MODEL VOLUME OUTPUT\n",
                 "       pfms.pl SERVER submit MODEL VOLUME OUTPUT KEY\n";
    exit 2;
}
my ($server, $command, $model, $file, $output, $key) = @ARGV;

my $agent = LWP::UserAgent->new;
$agent->timeout(86_400) if $command eq 'infer';    # LWP waits for 3 minutes by default
$HTTP::Request::Common::DYNAMIC_FILE_UPLOAD = 1;   # send the file piece by piece

# The same key again finds the same job, so a call that broke off can be made again.
my @headers = $command eq 'submit' ? (Prefer => 'respond-async', 'Idempotency-Key' => $key) : ();
my $url = URI->new("$server/api/v1/spleenseg/"
                   . ($command eq 'upload' ? 'modelpth' : 'NIfTIinference'));
$url->query_form(modelID => $model);
my $answer = call(POST $url, @headers, Content_Type => 'form-data', Content => [file => [$file]]);
if ($command eq 'upload') {
    print 'stored with the checksum ', decode_json($answer->content)->{sha256}, "\n";
    exit;
}
print 'job ', $answer->header('X-Pfms-Job'), "\n";
if ($answer->code == 202) {
    my $job = URI->new_abs($answer->header('Location'), $url);
    sleep 1 while decode_json(call(GET $job)->content)->{state} =~ /^(queued|running)$/;
    $answer = call(GET "$job/result");
}
open my $target, '>:raw', $output or die "$output: $!\n";
print $target $answer->content;
close $target or die "$output: $!\n";

sub call {
    my $answer = $agent->request(shift);
    return $answer if $answer->is_success;
    my $message = $answer->status_line;    # for example from a proxy
    if ($answer->content_type eq 'application/problem+json') {
        my $problem = decode_json($answer->content);
        $message = "$problem->{detail} $problem->{remedy}";
    }
    print STDERR "$message\n";
    exit 1;
}
